#include "lib/algo/lm_loss.h"

#include <cmath>
#include <limits>

namespace cox {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

absl::Status CheckId(std::string_view name, int64_t id, int64_t vocab) {
  if (id >= 0 && id < vocab) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(name), ": ", id, " outside the vocabulary of ", vocab));
}

// H = −Σ p·log p with 0·log 0 = 0, for log p = z/τ − log_sum.
template <typename T>
double Entropy(std::span<const T> row, double temperature, double log_sum) {
  double entropy = 0;
  for (const T z : row) {
    const double log_p = static_cast<double>(z) / temperature - log_sum;
    const double p = std::exp(log_p);
    if (p > 0) entropy -= p * log_p;
  }
  return entropy;
}

}  // namespace

template <typename T>
absl::StatusOr<double> LogSumExp(std::span<const T> row, double temperature) {
  double top = -kInf;
  for (const T z : row) {
    if (std::isnan(z) || static_cast<double>(z) == kInf) {
      return absl::InvalidArgumentError("logits: NaN or +inf");
    }
    top = std::max(top, static_cast<double>(z));
  }
  if (top == -kInf) {
    return absl::InvalidArgumentError("logits: a row without a finite value");
  }
  double sum = 0;
  for (const T z : row) {
    sum += std::exp((static_cast<double>(z) - top) / temperature);
  }
  return top / temperature + std::log(sum);
}

template <typename T>
absl::StatusOr<LogprobResult<T>> TokenLogprobs(const LogprobInput<T>& input) {
  const Shape2 shape = input.shape;
  const int64_t vocab = input.vocab;
  const double tau = input.temperature;
  COX_RETURN_IF_ERROR(CheckPositive("temperature", tau));
  COX_RETURN_IF_ERROR(CheckSize("mask", input.mask.size(), shape.size()));
  COX_RETURN_IF_ERROR(CheckSize("ids", input.ids.size(), shape.size()));
  COX_RETURN_IF_ERROR(
      CheckSize("logits", input.logits.size(), shape.size() * vocab));
  const bool with_logprob = !input.upstream.empty();
  const bool with_entropy = !input.upstream_entropy.empty();
  if (with_logprob) {
    COX_RETURN_IF_ERROR(
        CheckMasked("upstream", input.upstream, shape, input.mask));
  }
  if (with_entropy) {
    COX_RETURN_IF_ERROR(CheckMasked("upstream_entropy", input.upstream_entropy,
                                    shape, input.mask));
  }
  LogprobResult<T> result;
  result.logprob.assign(shape.size(), T{0});
  result.entropy.assign(shape.size(), T{0});
  if (with_logprob || with_entropy) {
    result.grad_logits.assign(shape.size() * vocab, T{0});
  }
  for (int64_t i = 0; i < shape.size(); ++i) {
    if (input.mask[i] == 0) continue;
    const int64_t id = input.ids[i];
    COX_RETURN_IF_ERROR(CheckId("ids", id, vocab));
    const std::span<const T> row = input.logits.subspan(i * vocab, vocab);
    COX_ASSIGN_OR_RETURN(const double log_sum, LogSumExp(row, tau));
    const double entropy = Entropy(row, tau, log_sum);
    result.logprob[i] =
        static_cast<T>(static_cast<double>(row[id]) / tau - log_sum);
    result.entropy[i] = static_cast<T>(entropy);
    if (result.grad_logits.empty()) continue;
    const double up =
        with_logprob ? static_cast<double>(input.upstream[i]) : 0.0;
    const double up_h =
        with_entropy ? static_cast<double>(input.upstream_entropy[i]) : 0.0;
    for (int64_t j = 0; j < vocab; ++j) {
      const double log_p = static_cast<double>(row[j]) / tau - log_sum;
      const double p = std::exp(log_p);
      double g = up * ((j == id ? 1.0 : 0.0) - p);
      if (p > 0) g -= up_h * p * (log_p + entropy);
      result.grad_logits[i * vocab + j] = static_cast<T>(g / tau);
    }
  }
  return result;
}

absl::StatusOr<double> CountTargets(Shape2 shape,
                                    std::span<const int64_t> labels) {
  COX_RETURN_IF_ERROR(CheckSize("labels", labels.size(), shape.size()));
  double targets = 0;
  for (int64_t b = 0; b < shape.rows; ++b) {
    for (int64_t t = 1; t < shape.cols; ++t) {
      targets += labels[b * shape.cols + t] != kIgnoredLabel ? 1 : 0;
    }
  }
  return targets;
}

template <typename T>
absl::StatusOr<SftLossResult<T>> SftLoss(Shape2 shape, int64_t vocab,
                                         std::span<const T> logits,
                                         std::span<const int64_t> labels,
                                         double total_tokens) {
  COX_RETURN_IF_ERROR(CheckSize("logits", logits.size(), shape.size() * vocab));
  SftLossResult<T> result;
  COX_ASSIGN_OR_RETURN(result.tokens, CountTargets(shape, labels));
  if (total_tokens < result.tokens) {
    return OutOfRange("total_tokens", total_tokens,
                      "must count at least this part's targets");
  }
  result.grad_logits.assign(logits.size(), T{0});
  for (int64_t b = 0; b < shape.rows; ++b) {
    for (int64_t t = 0; t + 1 < shape.cols; ++t) {
      const int64_t label = labels[b * shape.cols + t + 1];
      if (label == kIgnoredLabel) continue;
      COX_RETURN_IF_ERROR(CheckId("labels", label, vocab));
      const int64_t begin = (b * shape.cols + t) * vocab;
      const std::span<const T> row = logits.subspan(begin, vocab);
      COX_ASSIGN_OR_RETURN(const double log_sum,
                           LogSumExp(row, /*temperature=*/1.0));
      result.loss += (log_sum - static_cast<double>(row[label])) / total_tokens;
      for (int64_t j = 0; j < vocab; ++j) {
        const double p = std::exp(static_cast<double>(row[j]) - log_sum);
        result.grad_logits[begin + j] =
            static_cast<T>((p - (j == label ? 1.0 : 0.0)) / total_tokens);
      }
    }
  }
  return result;
}

template <typename T>
absl::StatusOr<NllLossResult<T>> NllLoss(Shape2 shape,
                                         std::span<const T> logprobs, Mask mask,
                                         double total_tokens) {
  COX_RETURN_IF_ERROR(CheckSize("mask", mask.size(), shape.size()));
  COX_RETURN_IF_ERROR(CheckMasked("logprob", logprobs, shape, mask));
  COX_RETURN_IF_ERROR(CheckNotNegative("total_tokens", total_tokens));
  NllLossResult<T> result;
  result.grad.assign(shape.size(), T{0});
  for (int64_t i = 0; i < shape.size(); ++i) {
    if (mask[i] == 0) continue;
    if (total_tokens == 0) {
      return OutOfRange("total_tokens", total_tokens,
                        "must count at least this part's targets");
    }
    result.loss -= static_cast<double>(logprobs[i]) / total_tokens;
    result.grad[i] = static_cast<T>(-1 / total_tokens);
  }
  return result;
}

#define COX_INSTANTIATE(T)                                                    \
  template absl::StatusOr<double> LogSumExp<T>(std::span<const T>, double);   \
  template absl::StatusOr<LogprobResult<T>> TokenLogprobs<T>(                 \
      const LogprobInput<T>&);                                                \
  template absl::StatusOr<SftLossResult<T>> SftLoss<T>(                       \
      Shape2, int64_t, std::span<const T>, std::span<const int64_t>, double); \
  template absl::StatusOr<NllLossResult<T>> NllLoss<T>(                       \
      Shape2, std::span<const T>, Mask, double);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
