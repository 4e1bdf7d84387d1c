#include "lib/algo/optim.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

namespace cox {

absl::StatusOr<LrKind> ParseLrKind(std::string_view name) {
  if (name == "constant") return LrKind::kConstant;
  if (name == "linear") return LrKind::kLinear;
  if (name == "cosine") return LrKind::kCosine;
  return absl::InvalidArgumentError("must be constant, linear or cosine");
}

absl::Status LrSchedule::Validate() const {
  COX_RETURN_IF_ERROR(CheckNotNegative("peak", peak));
  if (kind != LrKind::kConstant) {
    COX_RETURN_IF_ERROR(CheckPositive("total", static_cast<double>(total)));
  }
  COX_RETURN_IF_ERROR(CheckRange("floor", floor, 0, 1));
  COX_RETURN_IF_ERROR(CheckNotNegative("warmup", static_cast<double>(warmup)));
  return CheckRange("warmup_start", warmup_start, 0, 1);
}

double LrSchedule::At(int64_t step) const {
  const double k = static_cast<double>(step);
  double warm = 1;
  if (warmup > 0) {
    const double w = static_cast<double>(warmup);
    warm = warmup_start + (1 - warmup_start) * std::min(k, w) / w;
  }
  if (kind == LrKind::kConstant) return peak * warm;
  const double u = std::min(k / static_cast<double>(total), 1.0);
  const double decay =
      kind == LrKind::kLinear
          ? 1 - u
          : floor + (1 - floor) * (1 + std::cos(std::numbers::pi * u)) / 2;
  return peak * warm * decay;
}

absl::StatusOr<AdamKind> ParseAdamKind(std::string_view name) {
  if (name == "adamw") return AdamKind::kAdamW;
  if (name == "tf_adam") return AdamKind::kTfAdam;
  return absl::InvalidArgumentError("must be adamw or tf_adam");
}

absl::Status AdamOptions::Validate() const {
  for (const double beta : {beta1, beta2}) {
    if (!(beta >= 0 && beta < 1)) {
      return OutOfRange("betas", beta, "must be in [0, 1)");
    }
  }
  COX_RETURN_IF_ERROR(CheckNotNegative("eps", eps));
  return CheckNotNegative("weight_decay", weight_decay);
}

template <typename T>
AdamFactors<T> AdamFactorsOf(const AdamOptions& options, const AdamStep& step) {
  const double t = static_cast<double>(step.step);
  const double correction1 = 1 - std::pow(options.beta1, t);
  const double correction2 = std::sqrt(1 - std::pow(options.beta2, t));
  const bool tf = options.kind == AdamKind::kTfAdam;
  const double decay = step.decay && !tf ? options.weight_decay : 0.0;
  AdamFactors<T> f;
  f.keep = static_cast<T>(1 - step.lr * decay);
  f.beta1 = static_cast<T>(options.beta1);
  f.beta2 = static_cast<T>(options.beta2);
  f.take1 = static_cast<T>(1 - options.beta1);
  f.take2 = static_cast<T>(1 - options.beta2);
  f.grad_scale = static_cast<T>(step.grad_scale);
  f.root_scale = static_cast<T>(tf ? 1.0 : 1 / correction2);
  f.rate = static_cast<T>(tf ? step.lr * correction2 / correction1
                             : step.lr / correction1);
  f.eps = static_cast<T>(options.eps);
  return f;
}

namespace {

// Raw restrict pointers, so that the compiler vectorises without checks.
template <typename T>
void AdamLoop(const AdamFactors<T> f, int64_t n, T* __restrict p,
              const T* __restrict g, T* __restrict m, T* __restrict v) {
  // With eps = 0 a parameter that never had a gradient has 0/0: stay put.
  constexpr T kSmallest = std::numeric_limits<T>::min();
  for (int64_t i = 0; i < n; ++i) {
    const T grad = g[i] * f.grad_scale;
    const T m_i = f.beta1 * m[i] + f.take1 * grad;
    const T v_i = f.beta2 * v[i] + f.take2 * grad * grad;
    const T divisor =
        std::max(std::sqrt(v_i) * f.root_scale + f.eps, kSmallest);
    m[i] = m_i;
    v[i] = v_i;
    p[i] = p[i] * f.keep - f.rate * (m_i / divisor);
  }
}

}  // namespace

template <typename T>
void AdamUpdate(const AdamOptions& options, const AdamStep& step,
                std::span<T> params, std::span<const T> grads, std::span<T> m,
                std::span<T> v) {
  COX_CHECK(step.step >= 1);
  COX_CHECK(grads.size() == params.size() && m.size() == params.size() &&
            v.size() == params.size());
  AdamLoop(AdamFactorsOf<T>(options, step), static_cast<int64_t>(params.size()),
           params.data(), grads.data(), m.data(), v.data());
}

template <typename T>
double SquaredNorm(std::span<const T> grads) {
  // Independent sums: a single one would be a chain of dependent additions.
  constexpr size_t kLanes = 16;
  std::array<double, kLanes> sums{};
  size_t i = 0;
  for (; i + kLanes <= grads.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const double g = static_cast<double>(grads[i + lane]);
      sums[lane] += g * g;
    }
  }
  double sum = 0;
  for (; i < grads.size(); ++i) {
    const double g = static_cast<double>(grads[i]);
    sum += g * g;
  }
  for (const double lane : sums) sum += lane;
  return sum;
}

template <typename T>
double GlobalNorm(std::span<const std::span<const T>> grads) {
  double sum = 0;
  for (const std::span<const T> range : grads) sum += SquaredNorm(range);
  // Squares of doubles may leave the range although the norm does not.
  constexpr double kSmall = 1e-280;
  if (std::isfinite(sum) && sum > kSmall) return std::sqrt(sum);
  double top = 0;
  for (const std::span<const T> range : grads) {
    for (const T g : range) {
      if (std::isnan(g)) return std::numeric_limits<double>::quiet_NaN();
      top = std::max(top, std::abs(static_cast<double>(g)));
    }
  }
  if (top == 0 || !std::isfinite(top)) return top;
  double scaled = 0;
  for (const std::span<const T> range : grads) {
    for (const T g : range) {
      const double x = static_cast<double>(g) / top;
      scaled += x * x;
    }
  }
  return top * std::sqrt(scaled);
}

ClipDecision ClipScale(double norm, double max_norm) {
  if (!std::isfinite(norm)) return {1.0, /*skip=*/true};
  return {std::min(1.0, max_norm / (norm + 1e-6)), /*skip=*/false};
}

namespace {

template <typename T>
void EmaLoop(T keep, T take, int64_t n, T* __restrict shadow,
             const T* __restrict params) {
  for (int64_t i = 0; i < n; ++i) {
    shadow[i] = keep * shadow[i] + take * params[i];
  }
}

}  // namespace

template <typename T>
void EmaUpdate(double decay, std::span<T> shadow, std::span<const T> params) {
  COX_CHECK(shadow.size() == params.size());
  EmaLoop(static_cast<T>(decay), static_cast<T>(1 - decay),
          static_cast<int64_t>(shadow.size()), shadow.data(), params.data());
}

bool HasWeightDecay(std::string_view name, std::span<const int64_t> shape) {
  if (shape.size() < 2) return false;                    // biases, norm weights
  if (shape.size() == 2 && shape[0] == 1) return false;  // scalar heads
  // Components between dots: "embed_tokens", "embed_positions", "wte", "wpe".
  while (!name.empty()) {
    const size_t dot = name.find('.');
    const std::string_view part = name.substr(0, dot);
    if (part == "wte" || part == "wpe" || part == "score" ||
        part.find("embed") != std::string_view::npos) {
      return false;
    }
    if (dot == std::string_view::npos) break;
    name.remove_prefix(dot + 1);
  }
  return true;
}

#define COX_INSTANTIATE(T)                                                    \
  template AdamFactors<T> AdamFactorsOf<T>(const AdamOptions&,                \
                                           const AdamStep&);                  \
  template void AdamUpdate<T>(const AdamOptions&, const AdamStep&,            \
                              std::span<T>, std::span<const T>, std::span<T>, \
                              std::span<T>);                                  \
  template double SquaredNorm<T>(std::span<const T>);                         \
  template double GlobalNorm<T>(std::span<const std::span<const T>>);         \
  template void EmaUpdate<T>(double, std::span<T>, std::span<const T>);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
