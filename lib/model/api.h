#ifndef COX_LIB_MODEL_API_H_
#define COX_LIB_MODEL_API_H_

// Engines backed by LibTorch, behind torch-free types. Called by main.cc only.

#include <cstdint>
#include <memory>
#include <string>

#include "lib/base/status.h"
#include "lib/engine/engine.h"

namespace cox {

struct EngineOptions {
  std::string device = "cpu";
  int threads = 1;  // compute threads of the process
  // Upper bound of rows * vocabulary held as logits at once.
  int64_t max_logit_elements = int64_t{1} << 24;
  // LibTorch's blocked attention kernel, or the plain formula.
  bool fused_attention = true;
};

// Once per process, before any engine: thread count, deterministic kernels,
// no gradient globally. Returns the numerics class, e.g.
// "torch-2.11.0/cpu/avx512/threads=1".
absl::StatusOr<std::string> InitTorch(const EngineOptions& options);

absl::StatusOr<std::unique_ptr<ScoreEngine>> MakeScoreEngine(
    const EngineOptions& options);
absl::StatusOr<std::unique_ptr<PolicyEngine>> MakePolicyEngine(
    const EngineOptions& options);
// Weights are set by Load().
absl::StatusOr<std::unique_ptr<TrainEngine>> MakeTrainEngine(
    const EngineOptions& options);

}  // namespace cox

#endif  // COX_LIB_MODEL_API_H_
