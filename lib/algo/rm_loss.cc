#include "lib/algo/rm_loss.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "lib/algo/lm_loss.h"

namespace cox {
namespace {

int64_t CountPairs(std::span<const int64_t> ranks) {
  int64_t pairs = 0;
  for (size_t i = 0; i < ranks.size(); ++i) {
    for (size_t j = i + 1; j < ranks.size(); ++j) {
      pairs += ranks[i] != ranks[j];
    }
  }
  return pairs;
}

// −log σ(x) and σ(−x).
struct LogisticLoss {
  double value = 0;
  double miss = 0;
};
LogisticLoss Logistic(double x) {
  const double e = std::exp(-std::abs(x));
  return {std::max(-x, 0.0) + std::log1p(e),
          x >= 0 ? e / (1 + e) : 1 / (1 + e)};
}

}  // namespace

int64_t CountRankedPrompts(std::span<const int64_t> ranks,
                           std::span<const int64_t> sizes) {
  int64_t prompts = 0;
  size_t begin = 0;
  for (const int64_t size : sizes) {
    if (size < 0 || begin + size > ranks.size()) return prompts;
    prompts += CountPairs(ranks.subspan(begin, size)) > 0;
    begin += size;
  }
  return prompts;
}

template <typename T>
absl::StatusOr<RmLossResult<T>> RmPairwiseLoss(std::span<const T> scores,
                                               std::span<const int64_t> ranks,
                                               std::span<const int64_t> sizes,
                                               const RmPairwiseOptions& options,
                                               std::optional<double> total) {
  int64_t completions = 0;
  for (const int64_t size : sizes) {
    COX_RETURN_IF_ERROR(CheckNotNegative("sizes", static_cast<double>(size)));
    completions += size;
  }
  COX_RETURN_IF_ERROR(CheckSize("scores", scores.size(), completions));
  COX_RETURN_IF_ERROR(CheckSize("ranks", ranks.size(), completions));
  COX_RETURN_IF_ERROR(CheckAllFinite("scores", scores));
  if (!std::isfinite(options.margin)) {
    return OutOfRange("margin", options.margin, "must be finite");
  }
  COX_RETURN_IF_ERROR(CheckNotNegative("center", options.center));

  RmLossResult<T> result;
  result.prompts = CountRankedPrompts(ranks, sizes);
  const double prompts = total ? *total : static_cast<double>(result.prompts);
  std::vector<double> grad(completions, 0.0);
  int64_t begin = 0;
  for (const int64_t size : sizes) {
    const int64_t pairs = CountPairs(ranks.subspan(begin, size));
    const double weight = 1 / (static_cast<double>(pairs) * prompts);
    for (int64_t w = begin; w < begin + size; ++w) {
      for (int64_t l = begin; l < begin + size; ++l) {
        if (ranks[w] >= ranks[l]) continue;  // w is better: lower rank
        const double r_w = static_cast<double>(scores[w]);
        const double r_l = static_cast<double>(scores[l]);
        const LogisticLoss pair = Logistic(r_w - r_l - options.margin);
        const double sum = r_w + r_l;
        result.loss += weight * (pair.value + options.center * sum * sum);
        grad[w] += weight * (-pair.miss + 2 * options.center * sum);
        grad[l] += weight * (pair.miss + 2 * options.center * sum);
        result.margin_sum += r_w - r_l;
        result.correct += r_w > r_l;
        ++result.pairs;
      }
    }
    begin += size;
  }
  result.grad.assign(grad.begin(), grad.end());
  if (result.pairs > 0) {
    result.accuracy =
        static_cast<double>(result.correct) / static_cast<double>(result.pairs);
  }
  return result;
}

template <typename T>
absl::StatusOr<RmLossResult<T>> RmBestOfLoss(Shape2 shape,
                                             std::span<const T> scores,
                                             std::span<const int64_t> best,
                                             std::optional<double> total) {
  COX_RETURN_IF_ERROR(CheckSize("scores", scores.size(), shape.size()));
  COX_RETURN_IF_ERROR(CheckSize("best", best.size(), shape.rows));
  COX_RETURN_IF_ERROR(CheckAllFinite("scores", scores));
  RmLossResult<T> result;
  result.grad.assign(shape.size(), T{0});
  result.prompts = shape.rows;
  const double prompts = total ? *total : static_cast<double>(shape.rows);
  for (int64_t p = 0; p < shape.rows; ++p) {
    if (best[p] < 0 || best[p] >= shape.cols) {
      return absl::InvalidArgumentError(absl::StrCat(
          "best: index ", best[p], " outside [0, ", shape.cols, ")"));
    }
    const std::span<const T> row = scores.subspan(p * shape.cols, shape.cols);
    COX_ASSIGN_OR_RETURN(const double log_sum,
                         LogSumExp(row, /*temperature=*/1.0));
    result.loss += (log_sum - static_cast<double>(row[best[p]])) / prompts;
    for (int64_t k = 0; k < shape.cols; ++k) {
      const double p_k = std::exp(static_cast<double>(row[k]) - log_sum);
      result.grad[p * shape.cols + k] =
          static_cast<T>((p_k - (k == best[p] ? 1.0 : 0.0)) / prompts);
    }
    result.correct +=
        std::max_element(row.begin(), row.end()) - row.begin() == best[p];
  }
  if (shape.rows > 0) {
    result.accuracy =
        static_cast<double>(result.correct) / static_cast<double>(shape.rows);
  }
  return result;
}

#define COX_INSTANTIATE(T)                                                    \
  template absl::StatusOr<RmLossResult<T>> RmPairwiseLoss<T>(                 \
      std::span<const T>, std::span<const int64_t>, std::span<const int64_t>, \
      const RmPairwiseOptions&, std::optional<double>);                       \
  template absl::StatusOr<RmLossResult<T>> RmBestOfLoss<T>(                   \
      Shape2, std::span<const T>, std::span<const int64_t>,                   \
      std::optional<double>);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
