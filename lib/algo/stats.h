#ifndef COX_LIB_ALGO_STATS_H_
#define COX_LIB_ALGO_STATS_H_

// Masked statistics, whitening and loss aggregation (docs/algorithms.md §1.1,
// §5.4).

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "lib/algo/reducer.h"
#include "lib/algo/shape.h"

namespace cox {

struct MeanCount {
  double mean = 0;    // 0 if count is 0
  int64_t count = 0;  // mask 1 elements
};
template <typename T>
absl::StatusOr<MeanCount> MaskedMean(std::span<const T> x, Mask mask);

// Count, mean and Σ(x−mean)² with exact results for constant input; merging
// is Chan's formula. Serves variances over micro-batches and ranks.
struct Moments {
  double count = 0;
  double mean = 0;
  double m2 = 0;
  void Add(double x);
  void Merge(const Moments& other);
  // m2/(count − ddof), 0 if count <= ddof.
  double Variance(int64_t ddof = 0) const;
};
// Merges the moments of all ranks, in rank order.
absl::StatusOr<Moments> AllReduceMoments(const Moments& local,
                                         Reducer& reducer);

struct WhitenOptions {
  bool shift_mean = true;  // false: add the mean back (rewards)
  int64_t ddof = 0;        // >= 0
  double eps = 1e-8;       // >= 0, added to the variance
};
template <typename T>
struct Whitened {
  std::vector<T> out;  // same layout as x, 0 where mask is 0
  double mean = 0;     // over all ranks; 0 if nothing is masked in
  double var = 0;      // 0 if count <= ddof
};
// (x − μ)/sqrt(σ² + eps) over masked elements of ALL ranks. Two passes, one
// collective each.
template <typename T>
absl::StatusOr<Whitened<T>> Whiten(std::span<const T> x, Mask mask,
                                   const WhitenOptions& options,
                                   Reducer& reducer);

// §1.1. kConst divides by sequences · t_max.
enum class LossAgg {
  kTokenMean,
  kSeqMeanTokenMean,
  kSeqMeanTokenSum,
  kConst,
};
absl::StatusOr<LossAgg> ParseLossAgg(std::string_view name);

// Denominators of one minibatch over all ranks and micro-batches, computed
// before the first backward. Sequences are rows with at least one mask 1.
struct LossNormalizer {
  double tokens = 0;
  double sequences = 0;
  double t_max = 0;  // kConst only; a constant of the run
};
// Local counts (one rank, one or all micro-batches).
absl::StatusOr<LossNormalizer> CountNormalizer(Shape2 shape, Mask mask);
// Counts summed over ranks; `t_max` is copied.
absl::StatusOr<LossNormalizer> MakeNormalizer(Shape2 shape, Mask mask,
                                              double t_max, Reducer& reducer);

// Weight of each token, ∂(aggregate)/∂(token loss): [B, T], 0 where mask is 0,
// all 0 for an empty minibatch. INVALID_ARGUMENT ("t_max") if kConst is asked
// without one, or ("normalizer") if it counts fewer tokens than the mask.
absl::StatusOr<std::vector<double>> TokenWeights(
    Shape2 shape, Mask mask, LossAgg agg, const LossNormalizer& normalizer);

struct Aggregated {
  double value = 0;            // this rank's share: Σ weight · loss
  std::vector<double> weight;  // [B, T]
};
template <typename T>
absl::StatusOr<Aggregated> Aggregate(Shape2 shape, std::span<const T> loss,
                                     Mask mask, LossAgg agg,
                                     const LossNormalizer& normalizer);

// Percentile bootstrap interval of the mean. Draws come from
// CounterRng(seed, "bootstrap"): equal inputs give equal intervals.
struct BootstrapOptions {
  double level = 0.95;       // in (0, 1)
  int64_t resamples = 2000;  // >= 1
  uint64_t seed = 0;
};
struct Interval {
  double mean = 0;
  double low = 0;
  double high = 0;
};
// INVALID_ARGUMENT for an empty or non-finite sample.
absl::StatusOr<Interval> BootstrapMean(std::span<const double> values,
                                       const BootstrapOptions& options);

// Distinct n-grams divided by all n-grams over a list of token sequences
// (n-grams do not cross sequences); 0 if there is none. n >= 1.
absl::StatusOr<double> DistinctN(
    std::span<const std::vector<int64_t>> sequences, int n);

}  // namespace cox

#endif  // COX_LIB_ALGO_STATS_H_
