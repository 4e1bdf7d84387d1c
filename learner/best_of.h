#ifndef COX_LEARNER_BEST_OF_H_
#define COX_LEARNER_BEST_OF_H_

// Stage rft: the best of the answers to each prompt, as training data of the
// language-model trainer (rejection sampling, docs/algorithms.md §8.1).

#include <cstdint>
#include <vector>

#include "learner/comparisons.h"
#include "learner/shards.h"
#include "lib/engine/engine.h"

namespace cox {

// Of each row the first answer of the best rank. Rows whose best answer is
// empty are left out.
std::vector<Sequence> BestByRank(const std::vector<Comparison>& rows);

// Of each row the first answer with the highest score of `reward`, the same on
// all ranks. A collective call; `micro_batch` bounds the rows per forward.
// INVALID_ARGUMENT when a score is not finite.
absl::StatusOr<std::vector<Sequence>> BestByReward(
    const std::vector<Comparison>& rows, int64_t micro_batch,
    ScoreEngine& reward, const Shards& shards);

}  // namespace cox

#endif  // COX_LEARNER_BEST_OF_H_
