#ifndef COX_LIB_MODEL_STATIC_GENERATE_H_
#define COX_LIB_MODEL_STATIC_GENERATE_H_

// Cached decoding on static tensors (decode_pool.h): on a GPU a step is
// recorded as a CUDA graph and replayed, attention, cache write and sampling
// are the plugin's kernels, and only drawn tokens travel to the host. On a CPU
// (EngineOptions::portable) the same code runs with LibTorch's operators.

#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "lib/model/decode_pool.h"
#include "lib/model/torch_model.h"

namespace cox {

// As PolicyEngine::Generate, of a validated request that is not empty. Rows are
// decoded together until the last one ends.
absl::StatusOr<GenerateResult> StaticGenerate(const TorchModel& model,
                                              const GenerateRequest& request,
                                              DecodePool* pool);

}  // namespace cox

#endif  // COX_LIB_MODEL_STATIC_GENERATE_H_
