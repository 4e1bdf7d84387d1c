#ifndef COX_LIB_ALGO_OPTIM_H_
#define COX_LIB_ALGO_OPTIM_H_

// Schedules and optimizers on flat parameter ranges (docs/algorithms.md §11).
// Loops are one pass over memory and vectorise; T = float in training.

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lib/algo/shape.h"

namespace cox {

enum class LrKind { kConstant, kLinear, kCosine };
absl::StatusOr<LrKind> ParseLrKind(std::string_view name);

struct LrSchedule {
  LrKind kind = LrKind::kConstant;
  double peak = 0;            // >= 0
  int64_t total = 1;          // N > 0 (kConstant: not used)
  double floor = 0;           // kCosine: fraction of peak, in [0, 1]
  int64_t warmup = 0;         // W >= 0
  double warmup_start = 0.1;  // in [0, 1]
  absl::Status Validate() const;
  // Learning rate of step k >= 0: peak · warm · decay(min(k/N, 1)).
  double At(int64_t step) const;
};

enum class AdamKind {
  kAdamW,   // PyTorch's form, decoupled decay
  kTfAdam,  // eps outside the bias correction, no decay
};
absl::StatusOr<AdamKind> ParseAdamKind(std::string_view name);

struct AdamOptions {
  AdamKind kind = AdamKind::kAdamW;
  double beta1 = 0.9;       // in [0, 1)
  double beta2 = 0.999;     // in [0, 1)
  double eps = 1e-8;        // >= 0
  double weight_decay = 0;  // >= 0, kAdamW only
  absl::Status Validate() const;
};

struct AdamStep {
  int64_t step = 1;  // t >= 1: this update's number
  double lr = 0;
  double grad_scale = 1;  // from ClipScale; multiplies every gradient
  bool decay = true;      // false: this range has no weight decay
};

// Everything of one update that does not depend on the element.
template <typename T>
struct AdamFactors {
  T keep;  // 1 − lr·wd
  T beta1, beta2;
  T take1, take2;  // 1 − β
  T grad_scale;
  T root_scale;  // multiplies √v
  T rate;        // multiplies m/(√v·root_scale + eps)
  T eps;
};
template <typename T>
AdamFactors<T> AdamFactorsOf(const AdamOptions& options, const AdamStep& step);

// One update of a parameter range; m and v are its moments (start at 0). All
// spans have one size and do not overlap. REQUIRES: equal sizes, step >= 1.
template <typename T>
void AdamUpdate(const AdamOptions& options, const AdamStep& step,
                std::span<T> params, std::span<const T> grads, std::span<T> m,
                std::span<T> v);

// Σ g² in double. Non-finite gradients give a non-finite result; sums over
// ranges and ranks may be added.
template <typename T>
double SquaredNorm(std::span<const T> grads);

// L2 norm over several ranges; unlike the sum of SquaredNorm it does not
// overflow for finite double input.
template <typename T>
double GlobalNorm(std::span<const std::span<const T>> grads);

struct ClipDecision {
  double scale = 1;   // min(1, max_norm/(norm + 1e-6))
  bool skip = false;  // norm not finite: skip the step on all ranks
};
ClipDecision ClipScale(double norm, double max_norm);

// θ̄ ← d·θ̄ + (1−d)·θ, element by element. REQUIRES: equal sizes.
template <typename T>
void EmaUpdate(double decay, std::span<T> shadow, std::span<const T> params);

// True for matrices (ndim >= 2) that are neither embeddings nor scalar heads
// (output dimension 1). `name` is the checkpoint's, such as
// "h.0.attn.c_attn.weight".
bool HasWeightDecay(std::string_view name, std::span<const int64_t> shape);

}  // namespace cox

#endif  // COX_LIB_ALGO_OPTIM_H_
