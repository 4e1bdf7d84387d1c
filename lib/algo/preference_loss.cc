#include "lib/algo/preference_loss.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace cox {
namespace {

// −log σ(x), stable for both signs.
double Softplus(double negated) {
  return std::max(negated, 0.0) + std::log1p(std::exp(-std::abs(negated)));
}
double NegLogSigmoid(double x) { return Softplus(-x); }
double Sigmoid(double x) {
  if (x >= 0) return 1 / (1 + std::exp(-x));
  const double e = std::exp(x);
  return e / (1 + e);
}

struct LogRatios {
  std::vector<double> sum;     // [B], Σ (ℓ − ℓ_ref)
  std::vector<double> length;  // [B]
};

template <typename T>
absl::StatusOr<LogRatios> SumLogRatios(std::string_view side,
                                       const CompletionLogprobs<T>& c) {
  const std::string prefix(side);
  COX_RETURN_IF_ERROR(
      CheckSize(prefix + ".mask", c.mask.size(), c.shape.size()));
  COX_RETURN_IF_ERROR(
      CheckMasked(prefix + ".logprob", c.policy_logprobs, c.shape, c.mask));
  COX_RETURN_IF_ERROR(CheckMasked(prefix + ".ref_logprob", c.reference_logprobs,
                                  c.shape, c.mask));
  LogRatios ratios;
  for (int64_t b = 0; b < c.shape.rows; ++b) {
    double sum = 0;
    double length = 0;
    for (int64_t i = b * c.shape.cols; i < (b + 1) * c.shape.cols; ++i) {
      if (c.mask[i] == 0) continue;
      sum += static_cast<double>(c.policy_logprobs[i]) -
             static_cast<double>(c.reference_logprobs[i]);
      length += 1;
    }
    if (length == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(prefix, ".mask: completion ", b, " is empty"));
    }
    ratios.sum.push_back(sum);
    ratios.length.push_back(length);
  }
  return ratios;
}

// Loss of one pair and its derivative with respect to h.
struct PairLoss {
  double loss = 0;
  double slope = 0;
};
PairLoss LossOfPair(double h, const PreferenceOptions& options) {
  const double beta = options.beta;
  if (options.kind == PreferenceKind::kIpo) {
    const double error = h - 1 / (2 * beta);
    return {error * error, 2 * error};
  }
  const double s = options.label_smoothing;
  return {(1 - s) * NegLogSigmoid(beta * h) + s * NegLogSigmoid(-beta * h),
          beta * (s * Sigmoid(beta * h) - (1 - s) * Sigmoid(-beta * h))};
}

double OrDefault(std::optional<double> total, size_t count) {
  return total ? *total : static_cast<double>(count);
}

template <typename T>
void SpreadOverRow(Shape2 shape, Mask mask, int64_t b, double value,
                   std::vector<T>* grad) {
  for (int64_t i = b * shape.cols; i < (b + 1) * shape.cols; ++i) {
    if (mask[i] != 0) (*grad)[i] = static_cast<T>(value);
  }
}

}  // namespace

absl::StatusOr<PreferenceKind> ParsePreferenceKind(std::string_view name) {
  if (name == "dpo") return PreferenceKind::kDpo;
  if (name == "ipo") return PreferenceKind::kIpo;
  return absl::InvalidArgumentError("must be dpo or ipo");
}

template <typename T>
absl::StatusOr<PreferenceResult<T>> PreferenceLoss(
    const CompletionLogprobs<T>& chosen, const CompletionLogprobs<T>& rejected,
    const PreferenceOptions& options, std::optional<double> total) {
  COX_RETURN_IF_ERROR(CheckPositive("beta", options.beta));
  COX_RETURN_IF_ERROR(
      CheckRange("label_smoothing", options.label_smoothing, 0, 1));
  if (chosen.shape.rows != rejected.shape.rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("rejected: expected ", chosen.shape.rows,
                     " rows as chosen has, found ", rejected.shape.rows));
  }
  COX_ASSIGN_OR_RETURN(const LogRatios w, SumLogRatios("chosen", chosen));
  COX_ASSIGN_OR_RETURN(const LogRatios l, SumLogRatios("rejected", rejected));
  const int64_t pairs = chosen.shape.rows;
  const double denominator = OrDefault(total, pairs);

  PreferenceResult<T> result;
  result.grad_chosen.assign(chosen.shape.size(), T{0});
  result.grad_rejected.assign(rejected.shape.size(), T{0});
  const bool per_token =
      options.kind == PreferenceKind::kIpo && options.length_norm;
  int64_t correct = 0;
  for (int64_t b = 0; b < pairs; ++b) {
    const double scale_w = per_token ? 1 / w.length[b] : 1.0;
    const double scale_l = per_token ? 1 / l.length[b] : 1.0;
    const double h = w.sum[b] * scale_w - l.sum[b] * scale_l;
    const PairLoss pair = LossOfPair(h, options);
    result.loss += pair.loss / denominator;
    const double slope = pair.slope / denominator;
    SpreadOverRow(chosen.shape, chosen.mask, b, slope * scale_w,
                  &result.grad_chosen);
    SpreadOverRow(rejected.shape, rejected.mask, b, -slope * scale_l,
                  &result.grad_rejected);
    result.reward_chosen.push_back(options.beta * w.sum[b]);
    result.reward_rejected.push_back(options.beta * l.sum[b]);
    correct += result.reward_chosen[b] > result.reward_rejected[b];
  }
  if (pairs > 0) {
    result.accuracy = static_cast<double>(correct) / static_cast<double>(pairs);
  }
  return result;
}

template <typename T>
absl::StatusOr<double> KtoReferencePoint(
    std::span<const T> mismatch_policy_logprobs,
    std::span<const T> mismatch_reference_logprobs) {
  const std::span<const T> policy = mismatch_policy_logprobs;
  const std::span<const T> reference = mismatch_reference_logprobs;
  COX_RETURN_IF_ERROR(CheckSize("mismatch_ref_logprob", reference.size(),
                                static_cast<int64_t>(policy.size())));
  COX_RETURN_IF_ERROR(CheckAllFinite("mismatch_logprob", policy));
  COX_RETURN_IF_ERROR(CheckAllFinite("mismatch_ref_logprob", reference));
  if (policy.empty()) return 0.0;
  double sum = 0;
  for (size_t i = 0; i < policy.size(); ++i) {
    sum += static_cast<double>(policy[i]) - static_cast<double>(reference[i]);
  }
  return std::max(0.0, sum / static_cast<double>(policy.size()));
}

template <typename T>
absl::StatusOr<KtoResult<T>> KtoLoss(const KtoInput<T>& input, double z0,
                                     const KtoOptions& options,
                                     std::optional<double> total) {
  const int64_t n = static_cast<int64_t>(input.policy_logprobs.size());
  COX_RETURN_IF_ERROR(
      CheckSize("ref_logprob", input.reference_logprobs.size(), n));
  COX_RETURN_IF_ERROR(CheckSize("desirable", input.desirable.size(), n));
  COX_RETURN_IF_ERROR(CheckAllFinite("logprob", input.policy_logprobs));
  COX_RETURN_IF_ERROR(CheckAllFinite("ref_logprob", input.reference_logprobs));
  COX_RETURN_IF_ERROR(CheckNotNegative("z0", z0));
  COX_RETURN_IF_ERROR(CheckPositive("beta", options.beta));
  COX_RETURN_IF_ERROR(CheckNotNegative("lambda_d", options.lambda_d));
  COX_RETURN_IF_ERROR(CheckNotNegative("lambda_u", options.lambda_u));
  const double denominator = OrDefault(total, n);
  KtoResult<T> result;
  result.grad.assign(n, T{0});
  for (int64_t i = 0; i < n; ++i) {
    const double delta = static_cast<double>(input.policy_logprobs[i]) -
                         static_cast<double>(input.reference_logprobs[i]);
    const double sign = input.desirable[i] != 0 ? 1.0 : -1.0;
    const double lambda =
        input.desirable[i] != 0 ? options.lambda_d : options.lambda_u;
    const double x = options.beta * sign * (delta - z0);
    // 1 − σ(x) = σ(−x), without cancellation for large x.
    const double miss = Sigmoid(-x);
    result.loss += lambda * miss / denominator;
    result.grad[i] = static_cast<T>(-lambda * options.beta * sign * miss *
                                    Sigmoid(x) / denominator);
  }
  return result;
}

#define COX_INSTANTIATE(T)                                                  \
  template absl::StatusOr<PreferenceResult<T>> PreferenceLoss<T>(           \
      const CompletionLogprobs<T>&, const CompletionLogprobs<T>&,           \
      const PreferenceOptions&, std::optional<double>);                     \
  template absl::StatusOr<double> KtoReferencePoint<T>(std::span<const T>,  \
                                                       std::span<const T>); \
  template absl::StatusOr<KtoResult<T>> KtoLoss<T>(                         \
      const KtoInput<T>&, double, const KtoOptions&, std::optional<double>);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
