#ifndef COX_LIB_MODEL_STATIC_GENERATE_H_
#define COX_LIB_MODEL_STATIC_GENERATE_H_

// Cached decoding with LibTorch's operators on tensors whose shapes and
// addresses do not change from token to token: on a GPU a step is recorded once
// as a CUDA graph and replayed, attention, cache write and sampling are the
// plugin's kernels, and only drawn tokens travel to the host. On a CPU
// (EngineOptions::portable) the same code runs without graph and kernels.

#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "lib/model/torch_model.h"

namespace cox {

// As PolicyEngine::Generate, of a validated request that is not empty. Rows are
// decoded together until the last one ends. FAILED_PRECONDITION for an
// encoder-decoder.
absl::StatusOr<GenerateResult> StaticGenerate(const TorchModel& model,
                                              const GenerateRequest& request);

}  // namespace cox

#endif  // COX_LIB_MODEL_STATIC_GENERATE_H_
