#include "lib/algo/value_loss.h"

#include <algorithm>
#include <cmath>

namespace cox {

void ValueLossSums::Merge(const ValueLossSums& other) {
  clipped += other.clipped;
  squared_error += other.squared_error;
  returns.Merge(other.returns);
  residuals.Merge(other.residuals);
}

absl::Status ValueLossSums::AllReduce(Reducer& reducer) {
  double sums[] = {clipped, squared_error};
  COX_RETURN_IF_ERROR(reducer.Sum(sums));
  clipped = sums[0];
  squared_error = sums[1];
  COX_ASSIGN_OR_RETURN(returns, AllReduceMoments(returns, reducer));
  COX_ASSIGN_OR_RETURN(residuals, AllReduceMoments(residuals, reducer));
  return absl::OkStatus();
}

ValueMetrics ValueLossSums::Finish() const {
  ValueMetrics metrics;
  const double tokens = returns.count;
  if (tokens == 0) return metrics;
  metrics.clipfrac = clipped / tokens;
  metrics.error = squared_error / tokens;
  const double variance = returns.Variance();
  if (variance > 0) {
    metrics.explained_var = 1 - residuals.Variance() / variance;
  }
  return metrics;
}

template <typename T>
absl::StatusOr<ValueLossResult<T>> ValueLoss(const ValueLossInput<T>& input,
                                             const ValueLossOptions& options,
                                             const LossNormalizer& normalizer) {
  const Shape2 shape = input.shape;
  const Mask mask = input.mask;
  COX_RETURN_IF_ERROR(CheckSize("mask", mask.size(), shape.size()));
  COX_RETURN_IF_ERROR(CheckMasked("values", input.values, shape, mask));
  COX_RETURN_IF_ERROR(CheckMasked("returns", input.returns, shape, mask));
  if (options.clip) {
    COX_RETURN_IF_ERROR(CheckNotNegative("clip", *options.clip));
    COX_RETURN_IF_ERROR(
        CheckMasked("old_values", input.old_values, shape, mask));
  }
  COX_ASSIGN_OR_RETURN(const std::vector<double> weight,
                       TokenWeights(shape, mask, options.agg, normalizer));
  ValueLossResult<T> result;
  result.grad.assign(shape.size(), T{0});
  for (int64_t i = 0; i < shape.size(); ++i) {
    if (mask[i] == 0) continue;
    const double value = static_cast<double>(input.values[i]);
    const double target = static_cast<double>(input.returns[i]);
    const double error = value - target;
    double square = error * error;
    double slope = error;
    result.sums.squared_error += square;
    result.sums.returns.Add(target);
    result.sums.residuals.Add(target - value);
    if (options.clip) {
      const double old = static_cast<double>(input.old_values[i]);
      const double moved = value - old;
      // Only outside the range, so that the rounding of V_old + (V − V_old)
      // never decides.
      if (std::abs(moved) > *options.clip) {
        const double clipped_error =
            old + std::copysign(*options.clip, moved) - target;
        if (clipped_error * clipped_error > square) {
          square = clipped_error * clipped_error;
          slope = 0;
          result.sums.clipped += 1;
        }
      }
    }
    result.loss += 0.5 * weight[i] * square;
    result.grad[i] = static_cast<T>(weight[i] * slope);
  }
  return result;
}

#define COX_INSTANTIATE(T)                                  \
  template absl::StatusOr<ValueLossResult<T>> ValueLoss<T>( \
      const ValueLossInput<T>&, const ValueLossOptions&,    \
      const LossNormalizer&);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
