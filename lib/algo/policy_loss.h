#ifndef COX_LIB_ALGO_POLICY_LOSS_H_
#define COX_LIB_ALGO_POLICY_LOSS_H_

// Policy losses with off-policy correction (docs/algorithms.md §6, §6.4, §7).
// A call handles any subset of a minibatch's rows: with the global normaliser,
// losses and metric sums of the parts add up to those of the whole, and each
// part's gradient equals the whole's gradient on its rows.

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "lib/algo/reducer.h"
#include "lib/algo/rollout.h"
#include "lib/algo/shape.h"
#include "lib/algo/stats.h"

namespace cox {

// kProbDiff is the probability-difference mask of §6.4.
enum class PolicyLossKind { kPpo, kGspo, kCispo, kReinforce, kProbDiff };
absl::StatusOr<PolicyLossKind> ParsePolicyLossKind(std::string_view name);

enum class IsMode {
  kNone,  // with behaviour log-probs: the uncapped ratio
  kTokenTruncate,
  kTokenMask,
  kSeqTruncate,
  kSeqMask,
  kGeometricMask,
};
absl::StatusOr<IsMode> ParseIsMode(std::string_view name);

enum class KlLoss { kNone, kK2, kK3 };
// "k1" is INVALID_ARGUMENT: its gradient has expectation 0 (§5.1).
absl::StatusOr<KlLoss> ParseKlLoss(std::string_view name);

struct PolicyLossOptions {
  PolicyLossKind kind = PolicyLossKind::kPpo;
  double eps_lo = 0.2;  // >= 0
  double eps_hi = 0.2;  // >= 0
  // >= 1, kPpo only
  std::optional<double> dual_clip = std::nullopt;
  LossAgg agg = LossAgg::kTokenMean;
  IsMode is_mode = IsMode::kNone;
  double is_lo = 0;  // >= 0
  double is_hi = 2;  // >= is_lo
  KlLoss kl_loss = KlLoss::kNone;
  double kl_beta = 0;  // >= 0
  // §6.4: drop a sequence with A < 0 and mean(ℓ_beh − ℓθ) > delta.
  std::optional<double> off_policy_delta = std::nullopt;
  absl::Status Validate() const;
};

template <typename T>
struct PolicyLossInput {
  Shape2 shape;
  std::span<const T> policy_logprobs;  // ℓθ, current, with gradient
  std::span<const T> clip_logprobs;    // clip centre: ℓ_beh if synchronous,
                                       // ℓ_prox if decoupled
  std::span<const T> advantages;       // kGspo: constant within a row
  Mask mask;
  std::span<const T> behaviour_logprobs;  // empty: no correction (w = 1)
  std::span<const T> reference_logprobs;  // needed by kl_loss only
};

struct PolicyMetrics {
  double approxkl = 0;
  double ratio = 0;
  double clipfrac = 0;  // kPpo only, otherwise 0
  double w_mean = 0;
  double w_max = 0;
  double ess = 0;
};

// Sums over tokens: add over micro-batches with Merge, over ranks with
// AllReduce, then Finish.
struct PolicyLossSums {
  double tokens = 0;
  double approxkl = 0;
  double ratio = 0;
  double clipped = 0;
  double w = 0;
  double w_squared = 0;
  double w_max = 0;
  void Merge(const PolicyLossSums& other);
  absl::Status AllReduce(Reducer& reducer);
  PolicyMetrics Finish() const;  // all 0 for an empty batch
};

template <typename T>
struct PolicyLossResult {
  double loss = 0;      // this part's share, KL term included
  double kl_loss = 0;   // the KL term alone (after kl_beta)
  std::vector<T> grad;  // [B, T], ∂loss/∂policy_logprobs
  PolicyLossSums sums;
};
template <typename T>
absl::StatusOr<PolicyLossResult<T>> PolicyLoss(
    const PolicyLossInput<T>& input, const PolicyLossOptions& options,
    const LossNormalizer& normalizer);

// ℓ_prox ≈ ℓ_beh + α(ℓθ − ℓ_beh), α = (v_prox − v_beh)/(v_θ − v_beh); ℓ_beh
// where v_beh >= v_prox (§7). v_theta >= v_prox.
struct ProxVersions {
  std::span<const int64_t> behaviour;  // [B, T]
  int64_t proximal = 0;
  int64_t policy = 0;
};
template <typename T>
absl::StatusOr<std::vector<T>> ProxInterpolate(
    Shape2 shape, std::span<const T> behaviour_logprobs,
    std::span<const T> policy_logprobs, Mask mask,
    const ProxVersions& versions);

}  // namespace cox

#endif  // COX_LIB_ALGO_POLICY_LOSS_H_
