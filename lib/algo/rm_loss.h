#ifndef COX_LIB_ALGO_RM_LOSS_H_
#define COX_LIB_ALGO_RM_LOSS_H_

// Reward-model losses (docs/algorithms.md §4). One prompt with its K
// completions is one element; give the minibatch's number of counting prompts
// as `total` to let a rank or micro-batch compute its share.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lib/algo/shape.h"

namespace cox {

struct RmPairwiseOptions {
  double margin = 0;
  double center = 0;  // >= 0, coefficient of (r_w + r_l)²
};

template <typename T>
struct RmLossResult {
  double loss = 0;        // Σ over prompts / total
  std::vector<T> grad;    // flat, as the scores
  double accuracy = 0;    // local; pairwise: r_w > r_l over all pairs; best-of:
                          // argmax (lowest index on ties)
  double margin_sum = 0;  // Σ (r_w − r_l) over pairs
  int64_t correct = 0;
  int64_t pairs = 0;    // after dropping ties; 0 for best-of
  int64_t prompts = 0;  // that count in the mean
};

// `sizes[p]` completions of prompt p follow each other in `scores` and
// `ranks` (1 = best, equal = tie). A prompt without a pair leaves the mean.
template <typename T>
absl::StatusOr<RmLossResult<T>> RmPairwiseLoss(
    std::span<const T> scores, std::span<const int64_t> ranks,
    std::span<const int64_t> sizes, const RmPairwiseOptions& options,
    std::optional<double> total = std::nullopt);

// Prompts with at least one pair of different rank, for `total`.
int64_t CountRankedPrompts(std::span<const int64_t> ranks,
                           std::span<const int64_t> sizes);

// Softmax cross-entropy of the best among K: scores [P, K], best [P].
template <typename T>
absl::StatusOr<RmLossResult<T>> RmBestOfLoss(
    Shape2 shape, std::span<const T> scores, std::span<const int64_t> best,
    std::optional<double> total = std::nullopt);

}  // namespace cox

#endif  // COX_LIB_ALGO_RM_LOSS_H_
