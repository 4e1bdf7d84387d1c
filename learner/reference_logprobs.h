#ifndef COX_LEARNER_REFERENCE_LOGPROBS_H_
#define COX_LEARNER_REFERENCE_LOGPROBS_H_

// Log-probs of whole data sets under fixed weights, shared by all ranks.

#include <cstdint>
#include <span>
#include <vector>

#include "learner/batching.h"
#include "learner/shards.h"
#include "lib/engine/engine.h"

namespace cox {

// Log-probs at temperature 1 of each row's targets, the same on all ranks and
// for any number of them. A collective call; `micro_batch` bounds the rows per
// forward, 0 = a whole shard. Not checked for finiteness.
absl::StatusOr<std::vector<std::vector<float>>> TargetLogprobs(
    std::span<const Sequence* const> rows, int64_t micro_batch,
    ScoreEngine& engine, const Shards& shards);

// Sum of one row's log-probs.
double SumLogprobs(std::span<const float> logprobs);

}  // namespace cox

#endif  // COX_LEARNER_REFERENCE_LOGPROBS_H_
