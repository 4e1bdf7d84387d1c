#ifndef COX_LIB_ENGINE_CANARY_H_
#define COX_LIB_ENGINE_CANARY_H_

// A fixed prompt whose log-probs show whether an engine computes what another
// one computes from the same weights. Its bits are equal between engines of
// one numerics class; a learner's and an actor's differ by rounding.

#include <span>
#include <vector>

#include "lib/base/status.h"
#include "lib/engine/engine.h"

namespace cox {

// Largest difference between two float32 engines (measured: 5.2e-6).
inline constexpr float kCanaryBound = 1e-4f;

// At most 7 values. INTERNAL when one is not finite or above 0. The engine is
// loaded and has a language-model head.
absl::StatusOr<std::vector<float>> CanaryLogprobs(ScoreEngine* engine);

// DATA_LOSS names the token whose log-prob is not `expected` within `bound`.
// Nothing is expected of an empty list.
absl::Status CompareCanary(std::span<const float> found,
                           std::span<const float> expected, float bound);

}  // namespace cox

#endif  // COX_LIB_ENGINE_CANARY_H_
