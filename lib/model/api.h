#ifndef COX_LIB_MODEL_API_H_
#define COX_LIB_MODEL_API_H_

// Engines backed by LibTorch, behind torch-free types. Called by main.cc only.

#include <memory>
#include <string>

#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "lib/engine/engine_options.h"

namespace cox {

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
