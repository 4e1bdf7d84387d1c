#include "lib/algo/stats.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "lib/base/rng.h"

namespace cox {
namespace {

absl::Status CheckMask(Shape2 shape, Mask mask) {
  return CheckSize("mask", mask.size(), shape.size());
}

}  // namespace

template <typename T>
absl::StatusOr<MeanCount> MaskedMean(std::span<const T> x, Mask mask) {
  COX_RETURN_IF_ERROR(
      CheckSize("x", x.size(), static_cast<int64_t>(mask.size())));
  COX_RETURN_IF_ERROR(CheckFinite("x", x, mask));
  double sum = 0;
  MeanCount result;
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask[i] == 0) continue;
    sum += static_cast<double>(x[i]);
    ++result.count;
  }
  if (result.count > 0) result.mean = sum / static_cast<double>(result.count);
  return result;
}

void Moments::Add(double x) {
  count += 1;
  const double delta = x - mean;
  mean += delta / count;
  m2 += delta * (x - mean);
}

void Moments::Merge(const Moments& other) {
  if (other.count == 0) return;
  if (count == 0) {
    *this = other;
    return;
  }
  const double both = count + other.count;
  const double delta = other.mean - mean;
  mean += delta * (other.count / both);
  m2 += other.m2 + delta * delta * (count * other.count / both);
  count = both;
}

double Moments::Variance(int64_t ddof) const {
  const double freedom = count - static_cast<double>(ddof);
  return freedom > 0 ? m2 / freedom : 0.0;
}

absl::StatusOr<Moments> AllReduceMoments(const Moments& local,
                                         Reducer& reducer) {
  const double slot[] = {local.count, local.mean, local.m2};
  COX_ASSIGN_OR_RETURN(const std::vector<double> slots,
                       GatherSlots(slot, reducer));
  Moments total;
  for (size_t i = 0; i + 3 <= slots.size(); i += 3) {
    total.Merge({slots[i], slots[i + 1], slots[i + 2]});
  }
  return total;
}

template <typename T>
absl::StatusOr<Whitened<T>> Whiten(std::span<const T> x, Mask mask,
                                   const WhitenOptions& options,
                                   Reducer& reducer) {
  COX_RETURN_IF_ERROR(
      CheckSize("x", x.size(), static_cast<int64_t>(mask.size())));
  COX_RETURN_IF_ERROR(CheckFinite("x", x, mask));
  COX_RETURN_IF_ERROR(
      CheckNotNegative("ddof", static_cast<double>(options.ddof)));
  COX_RETURN_IF_ERROR(CheckNotNegative("eps", options.eps));

  // Pass 1: mean. Welford, because constant input must give variance 0
  // exactly whatever eps is.
  Moments local;
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask[i] != 0) local.Add(static_cast<double>(x[i]));
  }
  COX_ASSIGN_OR_RETURN(const Moments first, AllReduceMoments(local, reducer));
  // Pass 2: squared deviations from the global mean.
  double squares[] = {0.0};
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask[i] == 0) continue;
    const double deviation = static_cast<double>(x[i]) - first.mean;
    squares[0] += deviation * deviation;
  }
  COX_RETURN_IF_ERROR(reducer.Sum(squares));

  Whitened<T> result;
  result.mean = first.mean;
  const double freedom = first.count - static_cast<double>(options.ddof);
  if (freedom > 0) result.var = squares[0] / freedom;
  const double spread = std::sqrt(result.var + options.eps);
  const double scale = spread > 0 ? 1 / spread : 0.0;
  const double shift = options.shift_mean ? 0.0 : result.mean;
  result.out.assign(x.size(), T{0});
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask[i] == 0) continue;
    const double centred = static_cast<double>(x[i]) - result.mean;
    result.out[i] = static_cast<T>(centred * scale + shift);
  }
  return result;
}

absl::StatusOr<LossAgg> ParseLossAgg(std::string_view name) {
  if (name == "token_mean") return LossAgg::kTokenMean;
  if (name == "seq_mean_token_mean") return LossAgg::kSeqMeanTokenMean;
  if (name == "seq_mean_token_sum") return LossAgg::kSeqMeanTokenSum;
  if (name == "const") return LossAgg::kConst;
  return absl::InvalidArgumentError(
      "must be token_mean, seq_mean_token_mean, seq_mean_token_sum or const");
}

absl::StatusOr<LossNormalizer> CountNormalizer(Shape2 shape, Mask mask) {
  COX_RETURN_IF_ERROR(CheckMask(shape, mask));
  LossNormalizer normalizer;
  for (int64_t b = 0; b < shape.rows; ++b) {
    const int64_t length = RowLength(shape, mask, b);
    normalizer.tokens += static_cast<double>(length);
    normalizer.sequences += length > 0 ? 1 : 0;
  }
  return normalizer;
}

absl::StatusOr<LossNormalizer> MakeNormalizer(Shape2 shape, Mask mask,
                                              double t_max, Reducer& reducer) {
  COX_ASSIGN_OR_RETURN(const LossNormalizer local,
                       CountNormalizer(shape, mask));
  double sums[] = {local.tokens, local.sequences};
  COX_RETURN_IF_ERROR(reducer.Sum(sums));
  return LossNormalizer{sums[0], sums[1], t_max};
}

absl::StatusOr<std::vector<double>> TokenWeights(
    Shape2 shape, Mask mask, LossAgg agg, const LossNormalizer& normalizer) {
  COX_ASSIGN_OR_RETURN(const LossNormalizer local,
                       CountNormalizer(shape, mask));
  if (agg == LossAgg::kConst) {
    COX_RETURN_IF_ERROR(CheckPositive("t_max", normalizer.t_max));
  }
  if (normalizer.tokens < local.tokens ||
      normalizer.sequences < local.sequences) {
    return absl::InvalidArgumentError(absl::StrCat(
        "normalizer: ", normalizer.tokens, " tokens and ", normalizer.sequences,
        " sequences are fewer than the mask's ", local.tokens, " and ",
        local.sequences));
  }
  std::vector<double> weight(shape.size(), 0.0);
  for (int64_t b = 0; b < shape.rows; ++b) {
    const double length = static_cast<double>(RowLength(shape, mask, b));
    if (length == 0) continue;
    double w = 0;
    switch (agg) {
      case LossAgg::kTokenMean:
        w = 1 / normalizer.tokens;
        break;
      case LossAgg::kSeqMeanTokenMean:
        w = 1 / (normalizer.sequences * length);
        break;
      case LossAgg::kSeqMeanTokenSum:
        w = 1 / normalizer.sequences;
        break;
      case LossAgg::kConst:
        w = 1 / (normalizer.sequences * normalizer.t_max);
        break;
    }
    for (int64_t i = b * shape.cols; i < (b + 1) * shape.cols; ++i) {
      if (mask[i] != 0) weight[i] = w;
    }
  }
  return weight;
}

template <typename T>
absl::StatusOr<Aggregated> Aggregate(Shape2 shape, std::span<const T> loss,
                                     Mask mask, LossAgg agg,
                                     const LossNormalizer& normalizer) {
  COX_RETURN_IF_ERROR(CheckMask(shape, mask));
  COX_RETURN_IF_ERROR(CheckMasked("loss", loss, shape, mask));
  Aggregated result;
  COX_ASSIGN_OR_RETURN(result.weight,
                       TokenWeights(shape, mask, agg, normalizer));
  for (size_t i = 0; i < loss.size(); ++i) {
    if (mask[i] != 0) {
      result.value += result.weight[i] * static_cast<double>(loss[i]);
    }
  }
  return result;
}

absl::StatusOr<Interval> BootstrapMean(std::span<const double> values,
                                       const BootstrapOptions& options) {
  if (values.empty()) return absl::InvalidArgumentError("values: empty");
  COX_RETURN_IF_ERROR(CheckAllFinite("values", values));
  if (!(options.level > 0 && options.level < 1)) {
    return OutOfRange("level", options.level, "must be in (0, 1)");
  }
  if (options.resamples < 1) {
    return absl::InvalidArgumentError("resamples: must be at least 1");
  }
  const size_t n = values.size();
  Interval interval;
  for (const double v : values) interval.mean += v;
  interval.mean /= static_cast<double>(n);

  CounterRng rng(options.seed, "bootstrap");
  std::vector<double> means(options.resamples);
  for (double& mean : means) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += values[rng.NextBelow(n)];
    mean = sum / static_cast<double>(n);
  }
  std::sort(means.begin(), means.end());
  // Linear interpolation between order statistics.
  const auto quantile = [&](double q) {
    const double position = q * static_cast<double>(means.size() - 1);
    const size_t below = static_cast<size_t>(position);
    const size_t above = std::min(below + 1, means.size() - 1);
    const double fraction = position - static_cast<double>(below);
    return means[below] + fraction * (means[above] - means[below]);
  };
  interval.low = quantile((1 - options.level) / 2);
  interval.high = quantile((1 + options.level) / 2);
  return interval;
}

absl::StatusOr<double> DistinctN(
    std::span<const std::vector<int64_t>> sequences, int n) {
  if (n < 1) return absl::InvalidArgumentError("n: must be at least 1");
  std::set<std::vector<int64_t>> distinct;
  int64_t total = 0;
  for (const std::vector<int64_t>& sequence : sequences) {
    for (size_t i = 0; i + n <= sequence.size(); ++i) {
      distinct.emplace(sequence.begin() + i, sequence.begin() + i + n);
      ++total;
    }
  }
  if (total == 0) return 0.0;
  return static_cast<double>(distinct.size()) / static_cast<double>(total);
}

#define COX_INSTANTIATE(T)                                                    \
  template absl::StatusOr<MeanCount> MaskedMean<T>(std::span<const T>, Mask); \
  template absl::StatusOr<Whitened<T>> Whiten<T>(                             \
      std::span<const T>, Mask, const WhitenOptions&, Reducer&);              \
  template absl::StatusOr<Aggregated> Aggregate<T>(                           \
      Shape2, std::span<const T>, Mask, LossAgg, const LossNormalizer&);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
