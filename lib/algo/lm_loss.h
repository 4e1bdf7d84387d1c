#ifndef COX_LIB_ALGO_LM_LOSS_H_
#define COX_LIB_ALGO_LM_LOSS_H_

// Log-probs, entropy and cross-entropy on logits (docs/algorithms.md §1, §3,
// §6). The CPU reference that lib/model is checked against, and the loss of
// supervised stages on per-token log-probs.

#include <cstdint>
#include <span>
#include <vector>

#include "lib/algo/shape.h"

namespace cox {

// log Σ exp(z/τ) of one row, and the checks of §1: NaN, +inf or −inf in the
// whole row is INVALID_ARGUMENT ("logits"); single −inf are forbidden tokens.
template <typename T>
absl::StatusOr<double> LogSumExp(std::span<const T> row, double temperature);

template <typename T>
struct LogprobInput {
  Shape2 shape;                  // [B, T]
  int64_t vocab = 0;             // V
  std::span<const T> logits;     // [B, T, V]; logits[b, t] score ids[b, t]
  std::span<const int64_t> ids;  // [B, T], in [0, V) under mask 1
  Mask mask;
  double temperature = 1;               // > 0
  std::span<const T> upstream;          // [B, T] ∂L/∂logprob; empty = none
  std::span<const T> upstream_entropy;  // [B, T] ∂L/∂entropy; empty = none
};
template <typename T>
struct LogprobResult {
  std::vector<T> logprob;      // [B, T]
  std::vector<T> entropy;      // [B, T], of softmax(z/τ), 0·log 0 = 0
  std::vector<T> grad_logits;  // [B, T, V]; empty without upstream
};
template <typename T>
absl::StatusOr<LogprobResult<T>> TokenLogprobs(const LogprobInput<T>& input);

inline constexpr int64_t kIgnoredLabel = -100;

// Target tokens: labels[:, 1:] that are not kIgnoredLabel.
absl::StatusOr<double> CountTargets(Shape2 shape,
                                    std::span<const int64_t> labels);

template <typename T>
struct SftLossResult {
  double loss = 0;             // Σ −log p(target) / total_tokens
  double tokens = 0;           // local targets
  std::vector<T> grad_logits;  // [B, L, V]
};
// logits [B, L, V], labels [B, L] aligned with the ids: logits[:, :-1] score
// labels[:, 1:]. `total_tokens` = targets of the whole minibatch; 0 gives
// loss 0.
template <typename T>
absl::StatusOr<SftLossResult<T>> SftLoss(Shape2 shape, int64_t vocab,
                                         std::span<const T> logits,
                                         std::span<const int64_t> labels,
                                         double total_tokens);

template <typename T>
struct NllLossResult {
  double loss = 0;      // −Σ logprob·mask / total_tokens
  std::vector<T> grad;  // [B, T], ∂loss/∂logprob
};
// The same loss on log-probs that a model has already computed (SFT, ptx).
template <typename T>
absl::StatusOr<NllLossResult<T>> NllLoss(Shape2 shape,
                                         std::span<const T> logprobs, Mask mask,
                                         double total_tokens);

}  // namespace cox

#endif  // COX_LIB_ALGO_LM_LOSS_H_
