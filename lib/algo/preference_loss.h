#ifndef COX_LIB_ALGO_PREFERENCE_LOSS_H_
#define COX_LIB_ALGO_PREFERENCE_LOSS_H_

// Offline preference losses DPO, IPO and KTO (docs/algorithms.md §8). Losses
// are means over the minibatch: give its size as `total` to let a rank or
// micro-batch compute its share.

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "lib/algo/shape.h"

namespace cox {

enum class PreferenceKind { kDpo, kIpo };
absl::StatusOr<PreferenceKind> ParsePreferenceKind(std::string_view name);

// Per-token log-probs of one side of the pairs, [B, T] (τ = 1).
template <typename T>
struct CompletionLogprobs {
  Shape2 shape;
  std::span<const T> policy_logprobs;
  std::span<const T> reference_logprobs;
  Mask mask;  // a row without mask is INVALID_ARGUMENT ("<side>.mask")
};

struct PreferenceOptions {
  PreferenceKind kind = PreferenceKind::kDpo;
  double beta = 0.1;           // > 0
  double label_smoothing = 0;  // kDpo, in [0, 1]
  bool length_norm = true;     // kIpo: log-ratios per token
};

template <typename T>
struct PreferenceResult {
  double loss = 0;                      // Σ over pairs / total
  std::vector<T> grad_chosen;           // [B, T_chosen]
  std::vector<T> grad_rejected;         // [B, T_rejected]
  std::vector<double> reward_chosen;    // [B], β(ℓ − ℓ_ref), sums
  std::vector<double> reward_rejected;  // [B]
  double accuracy = 0;                  // share of chosen > rejected, local
};
// `total` = pairs of the whole minibatch, default: those given.
template <typename T>
absl::StatusOr<PreferenceResult<T>> PreferenceLoss(
    const CompletionLogprobs<T>& chosen, const CompletionLogprobs<T>& rejected,
    const PreferenceOptions& options,
    std::optional<double> total = std::nullopt);

struct KtoOptions {
  double beta = 0.1;    // > 0
  double lambda_d = 1;  // >= 0
  double lambda_u = 1;  // >= 0
};
template <typename T>
struct KtoInput {
  std::span<const T> policy_logprobs;     // [B], sums over the completion
  std::span<const T> reference_logprobs;  // [B]
  std::span<const uint8_t> desirable;     // [B]
};
// max(0, mean(ℓ − ℓ_ref)) over mismatched pairs of the whole minibatch, 0 if
// there are none. Constant in the gradient.
template <typename T>
absl::StatusOr<double> KtoReferencePoint(
    std::span<const T> mismatch_policy_logprobs,
    std::span<const T> mismatch_reference_logprobs);
template <typename T>
struct KtoResult {
  double loss = 0;      // Σ / total
  std::vector<T> grad;  // [B]
};
template <typename T>
absl::StatusOr<KtoResult<T>> KtoLoss(
    const KtoInput<T>& input, double z0, const KtoOptions& options,
    std::optional<double> total = std::nullopt);

}  // namespace cox

#endif  // COX_LIB_ALGO_PREFERENCE_LOSS_H_
