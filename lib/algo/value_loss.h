#ifndef COX_LIB_ALGO_VALUE_LOSS_H_
#define COX_LIB_ALGO_VALUE_LOSS_H_

// Clipped value loss (docs/algorithms.md §6.1). Parts of a minibatch add up,
// as in policy_loss.h.

#include <optional>
#include <span>
#include <vector>

#include "lib/algo/reducer.h"
#include "lib/algo/shape.h"
#include "lib/algo/stats.h"

namespace cox {

template <typename T>
struct ValueLossInput {
  Shape2 shape;
  std::span<const T> values;      // V, current, with gradient
  std::span<const T> old_values;  // V_old, fixed over the inner epochs; not
                                  // read (may be empty) without clip
  std::span<const T> returns;     // R
  Mask mask;                      // the value mask
};

struct ValueLossOptions {
  std::optional<double> clip = 0.2;  // >= 0; nullopt: plain squared error
  LossAgg agg = LossAgg::kTokenMean;
};

struct ValueMetrics {
  double clipfrac = 0;
  double error = 0;          // masked mean (V − R)²
  double explained_var = 0;  // 1 − Var(R−V)/Var(R), 0 if Var(R) = 0
};

struct ValueLossSums {
  double clipped = 0;
  double squared_error = 0;
  Moments returns;
  Moments residuals;  // R − V
  void Merge(const ValueLossSums& other);
  absl::Status AllReduce(Reducer& reducer);
  ValueMetrics Finish() const;
};

template <typename T>
struct ValueLossResult {
  double loss = 0;      // this part's share, with the ½, without vf_coef
  std::vector<T> grad;  // [B, T], ∂loss/∂values
  ValueLossSums sums;
};
template <typename T>
absl::StatusOr<ValueLossResult<T>> ValueLoss(const ValueLossInput<T>& input,
                                             const ValueLossOptions& options,
                                             const LossNormalizer& normalizer);

}  // namespace cox

#endif  // COX_LIB_ALGO_VALUE_LOSS_H_
