#include "lib/algo/policy_loss.h"

#include <algorithm>
#include <cmath>

namespace cox {
namespace {

// Bound of every ratio's exponent (docs/algorithms.md §6).
constexpr double kLogRatioBound = 20.0;
// §6.4, probability-difference mask.
constexpr double kProbDiffBound = 0.2;
constexpr double kProbDiffSquare = 1e-3;

// exp of a clamped log-ratio, and whether gradient flows through it.
struct Ratio {
  double value = 1;
  bool inside = true;
};
Ratio RatioOf(double log_ratio) {
  const double bounded = std::clamp(log_ratio, -kLogRatioBound, kLogRatioBound);
  return {std::exp(bounded), bounded == log_ratio};
}

// Token loss and its derivative with respect to ℓθ.
struct TokenLoss {
  double loss = 0;
  double grad = 0;
  bool clipped = false;
};

// max(−A·u, −A·clip(u)): value and derivative with respect to log u.
TokenLoss ClippedLoss(double advantage, Ratio u,
                      const PolicyLossOptions& options) {
  const double plain = -advantage * u.value;
  const double capped =
      -advantage * std::clamp(u.value, 1 - options.eps_lo, 1 + options.eps_hi);
  TokenLoss token;
  token.clipped = capped > plain;
  token.loss = token.clipped ? capped : plain;
  // The clipped branch wins only where clip(u) is constant.
  token.grad = token.clipped || !u.inside ? 0.0 : plain;
  return token;
}

TokenLoss PpoLoss(double advantage, Ratio u, const PolicyLossOptions& options) {
  TokenLoss token = ClippedLoss(advantage, u, options);
  if (options.dual_clip && advantage < 0) {
    const double bound = -advantage * *options.dual_clip;
    if (bound < token.loss) {
      token.loss = bound;
      token.grad = 0;
    }
  }
  return token;
}

// One row's masked values, widened to double.
struct Row {
  std::vector<int64_t> index;  // flat position of each masked token
  std::vector<double> policy;
  std::vector<double> clip;
  std::vector<double> advantage;
  std::vector<double> behaviour;  // empty without correction
  size_t size() const { return index.size(); }
};

template <typename T>
void LoadRow(const PolicyLossInput<T>& input, int64_t b, Row* row) {
  row->index.clear();
  row->policy.clear();
  row->clip.clear();
  row->advantage.clear();
  row->behaviour.clear();
  for (int64_t i = b * input.shape.cols; i < (b + 1) * input.shape.cols; ++i) {
    if (input.mask[i] == 0) continue;
    row->index.push_back(i);
    row->policy.push_back(static_cast<double>(input.policy_logprobs[i]));
    row->clip.push_back(static_cast<double>(input.clip_logprobs[i]));
    row->advantage.push_back(static_cast<double>(input.advantages[i]));
    if (!input.behaviour_logprobs.empty()) {
      row->behaviour.push_back(
          static_cast<double>(input.behaviour_logprobs[i]));
    }
  }
}

// Weights of one row after the mode's cap or mask (§7), and the raw token
// ratios for the metrics.
struct IsWeights {
  std::vector<double> raw;
  std::vector<double> used;
};

void WeightRow(const Row& row, const PolicyLossOptions& options,
               IsWeights* weights) {
  weights->raw.assign(row.size(), 1.0);
  weights->used.assign(row.size(), 1.0);
  if (row.behaviour.empty()) return;
  double log_sum = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const double log_w = row.clip[i] - row.behaviour[i];
    log_sum += log_w;
    weights->raw[i] = RatioOf(log_w).value;
  }
  const auto in_bounds = [&](double w) {
    return w >= options.is_lo && w <= options.is_hi;
  };
  const double sequence = RatioOf(log_sum).value;
  const double geometric =
      RatioOf(log_sum / static_cast<double>(row.size())).value;
  for (size_t i = 0; i < row.size(); ++i) {
    const double w = weights->raw[i];
    double used = w;
    switch (options.is_mode) {
      case IsMode::kNone:
        break;
      case IsMode::kTokenTruncate:
        used = std::min(w, options.is_hi);
        break;
      case IsMode::kTokenMask:
        used = in_bounds(w) ? w : 0.0;
        break;
      case IsMode::kSeqTruncate:
        used = std::min(sequence, options.is_hi);
        break;
      case IsMode::kSeqMask:
        used = in_bounds(sequence) ? sequence : 0.0;
        break;
      case IsMode::kGeometricMask:
        used = in_bounds(geometric) ? w : 0.0;
        break;
    }
    weights->used[i] = used;
  }
}

// §6.4: A < 0 and the sequence has drifted away from the behaviour policy. A
// row's advantage is that of its first token; they are equal for the critic-
// free estimators this filter is meant for.
bool DropOffPolicy(const Row& row, const PolicyLossOptions& options) {
  if (!options.off_policy_delta || row.size() == 0) return false;
  if (row.advantage[0] >= 0) return false;
  double drift = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    drift += row.behaviour[i] - row.policy[i];
  }
  return drift / static_cast<double>(row.size()) > *options.off_policy_delta;
}

// §6.4: −A·π_θ/π_beh + 1e-3·(log ratio)², policy gradient dropped where the
// probability moved too far in the advantage's direction.
TokenLoss ProbDiffLoss(double advantage, double policy, double behaviour) {
  const double log_ratio = policy - behaviour;
  const Ratio u = RatioOf(log_ratio);
  const double moved = std::exp(policy) - std::exp(behaviour);
  const bool drop = (advantage > 0 && moved > kProbDiffBound) ||
                    (advantage < 0 && moved < -kProbDiffBound);
  TokenLoss token;
  token.loss = kProbDiffSquare * log_ratio * log_ratio;
  token.grad = 2 * kProbDiffSquare * log_ratio;
  if (!drop) {
    token.loss += -advantage * u.value;
    token.grad += u.inside ? -advantage * u.value : 0.0;
  }
  return token;
}

TokenLoss LossOfToken(const Row& row, size_t i, Ratio u,
                      const PolicyLossOptions& options) {
  const double advantage = row.advantage[i];
  switch (options.kind) {
    case PolicyLossKind::kPpo:
      return PpoLoss(advantage, u, options);
    case PolicyLossKind::kCispo: {
      // The bounded ratio is a constant; the gradient flows through ℓθ.
      const double bounded = std::min(u.value, 1 + options.eps_hi);
      return {-bounded * advantage * row.policy[i], -bounded * advantage};
    }
    case PolicyLossKind::kReinforce:
      return {-advantage * row.policy[i], -advantage};
    case PolicyLossKind::kProbDiff:
      return ProbDiffLoss(advantage, row.policy[i], row.behaviour[i]);
    case PolicyLossKind::kGspo:
      break;
  }
  return {};
}

// Losses and gradients of one row. `weight` already holds the aggregation
// weight times the importance weight of each token.
double RowLoss(const Row& row, const std::vector<double>& weight,
               const PolicyLossOptions& options, std::vector<double>* grad,
               PolicyLossSums* sums) {
  double loss = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const Ratio u = RatioOf(row.policy[i] - row.clip[i]);
    sums->ratio += u.value;
    if (options.kind == PolicyLossKind::kGspo) continue;
    const TokenLoss token = LossOfToken(row, i, u, options);
    loss += weight[i] * token.loss;
    (*grad)[i] = weight[i] * token.grad;
    if (options.kind == PolicyLossKind::kPpo && token.clipped) {
      sums->clipped += 1;
    }
  }
  if (options.kind != PolicyLossKind::kGspo || row.size() == 0) return loss;

  // One ratio per sequence; every token carries the sequence's loss (§6).
  double log_sum = 0;
  double weight_sum = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    log_sum += row.policy[i] - row.clip[i];
    weight_sum += weight[i];
  }
  const double length = static_cast<double>(row.size());
  const TokenLoss sequence =
      ClippedLoss(row.advantage[0], RatioOf(log_sum / length), options);
  for (double& g : *grad) g = weight_sum * sequence.grad / length;
  return weight_sum * sequence.loss;
}

void AddMetrics(const Row& row, const IsWeights& weights,
                PolicyLossSums* sums) {
  for (size_t i = 0; i < row.size(); ++i) {
    const double diff = row.policy[i] - row.clip[i];
    const double w = weights.raw[i];
    sums->tokens += 1;
    sums->approxkl += 0.5 * diff * diff;
    sums->w += w;
    sums->w_squared += w * w;
    sums->w_max = std::max(sums->w_max, w);
  }
}

template <typename T>
absl::Status CheckInput(const PolicyLossInput<T>& input,
                        const PolicyLossOptions& options) {
  COX_RETURN_IF_ERROR(options.Validate());
  const Shape2 shape = input.shape;
  const Mask mask = input.mask;
  COX_RETURN_IF_ERROR(CheckSize("mask", mask.size(), shape.size()));
  COX_RETURN_IF_ERROR(
      CheckMasked("logprob", input.policy_logprobs, shape, mask));
  COX_RETURN_IF_ERROR(
      CheckMasked("old_logprob", input.clip_logprobs, shape, mask));
  COX_RETURN_IF_ERROR(CheckMasked("advantages", input.advantages, shape, mask));
  const bool needs_behaviour = options.is_mode != IsMode::kNone ||
                               options.off_policy_delta.has_value() ||
                               options.kind == PolicyLossKind::kProbDiff;
  if (!input.behaviour_logprobs.empty() ||
      (needs_behaviour && shape.size() > 0)) {
    COX_RETURN_IF_ERROR(CheckMasked("behaviour_logprob",
                                    input.behaviour_logprobs, shape, mask));
  }
  if (options.kl_loss != KlLoss::kNone) {
    COX_RETURN_IF_ERROR(
        CheckMasked("ref_logprob", input.reference_logprobs, shape, mask));
  }
  return absl::OkStatus();
}

absl::Status CheckGspoRow(const Row& row, int64_t b) {
  for (const double a : row.advantage) {
    if (a != row.advantage[0]) {
      return absl::InvalidArgumentError(
          absl::StrCat("advantages: gspo wants one value per sequence, row ", b,
                       " has several"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PolicyLossKind> ParsePolicyLossKind(std::string_view name) {
  if (name == "ppo") return PolicyLossKind::kPpo;
  if (name == "gspo") return PolicyLossKind::kGspo;
  if (name == "cispo") return PolicyLossKind::kCispo;
  if (name == "reinforce") return PolicyLossKind::kReinforce;
  if (name == "prob_diff") return PolicyLossKind::kProbDiff;
  return absl::InvalidArgumentError(
      "must be ppo, gspo, cispo, reinforce or prob_diff");
}

absl::StatusOr<IsMode> ParseIsMode(std::string_view name) {
  if (name == "none") return IsMode::kNone;
  if (name == "token_truncate") return IsMode::kTokenTruncate;
  if (name == "token_mask") return IsMode::kTokenMask;
  if (name == "seq_truncate") return IsMode::kSeqTruncate;
  if (name == "seq_mask") return IsMode::kSeqMask;
  if (name == "geometric_mask") return IsMode::kGeometricMask;
  return absl::InvalidArgumentError(
      "must be none, token_truncate, token_mask, seq_truncate, seq_mask or "
      "geometric_mask");
}

absl::StatusOr<KlLoss> ParseKlLoss(std::string_view name) {
  if (name == "none") return KlLoss::kNone;
  if (name == "k2") return KlLoss::kK2;
  if (name == "k3") return KlLoss::kK3;
  if (name == "k1") {
    return absl::InvalidArgumentError(
        "k1 as a loss has an expected gradient of 0; use k2 or k3");
  }
  return absl::InvalidArgumentError("must be none, k2 or k3");
}

absl::Status PolicyLossOptions::Validate() const {
  COX_RETURN_IF_ERROR(CheckNotNegative("eps_lo", eps_lo));
  COX_RETURN_IF_ERROR(CheckNotNegative("eps_hi", eps_hi));
  if (dual_clip && !(*dual_clip >= 1 && std::isfinite(*dual_clip))) {
    return OutOfRange("dual_clip", *dual_clip, "must be at least 1");
  }
  COX_RETURN_IF_ERROR(CheckNotNegative("is_lo", is_lo));
  COX_RETURN_IF_ERROR(CheckNotNegative("is_hi", is_hi));
  if (is_hi < is_lo) {
    return OutOfRange("is_hi", is_hi, "must be at least is_lo");
  }
  COX_RETURN_IF_ERROR(CheckNotNegative("kl_beta", kl_beta));
  if (off_policy_delta) {
    COX_RETURN_IF_ERROR(
        CheckNotNegative("off_policy_delta", *off_policy_delta));
  }
  return absl::OkStatus();
}

void PolicyLossSums::Merge(const PolicyLossSums& other) {
  tokens += other.tokens;
  approxkl += other.approxkl;
  ratio += other.ratio;
  clipped += other.clipped;
  w += other.w;
  w_squared += other.w_squared;
  w_max = std::max(w_max, other.w_max);
}

absl::Status PolicyLossSums::AllReduce(Reducer& reducer) {
  const double local[] = {tokens, approxkl,  ratio, clipped,
                          w,      w_squared, w_max};
  COX_ASSIGN_OR_RETURN(const std::vector<double> slots,
                       GatherSlots(local, reducer));
  *this = PolicyLossSums();
  for (size_t i = 0; i + 7 <= slots.size(); i += 7) {
    Merge({slots[i], slots[i + 1], slots[i + 2], slots[i + 3], slots[i + 4],
           slots[i + 5], slots[i + 6]});
  }
  return absl::OkStatus();
}

PolicyMetrics PolicyLossSums::Finish() const {
  PolicyMetrics metrics;
  if (tokens == 0) return metrics;
  metrics.approxkl = approxkl / tokens;
  metrics.ratio = ratio / tokens;
  metrics.clipfrac = clipped / tokens;
  metrics.w_mean = w / tokens;
  metrics.w_max = w_max;
  metrics.ess = w * w / (tokens * w_squared);
  return metrics;
}

template <typename T>
absl::StatusOr<PolicyLossResult<T>> PolicyLoss(
    const PolicyLossInput<T>& input, const PolicyLossOptions& options,
    const LossNormalizer& normalizer) {
  COX_RETURN_IF_ERROR(CheckInput(input, options));
  const Shape2 shape = input.shape;
  COX_ASSIGN_OR_RETURN(
      const std::vector<double> agg_weight,
      TokenWeights(shape, input.mask, options.agg, normalizer));
  const KlKind kl_kind =
      options.kl_loss == KlLoss::kK2 ? KlKind::kK2 : KlKind::kK3;

  PolicyLossResult<T> result;
  result.grad.assign(shape.size(), T{0});
  Row row;
  IsWeights is_weights;
  std::vector<double> weight;
  std::vector<double> grad;
  for (int64_t b = 0; b < shape.rows; ++b) {
    LoadRow(input, b, &row);
    if (options.kind == PolicyLossKind::kGspo) {
      COX_RETURN_IF_ERROR(CheckGspoRow(row, b));
    }
    WeightRow(row, options, &is_weights);
    const bool dropped = DropOffPolicy(row, options);
    weight.assign(row.size(), 0.0);
    grad.assign(row.size(), 0.0);
    for (size_t i = 0; i < row.size() && !dropped; ++i) {
      // kProbDiff has its importance ratio inside the loss already.
      const double w =
          options.kind == PolicyLossKind::kProbDiff ? 1.0 : is_weights.used[i];
      weight[i] = agg_weight[row.index[i]] * w;
    }
    result.loss += RowLoss(row, weight, options, &grad, &result.sums);
    AddMetrics(row, is_weights, &result.sums);
    for (size_t i = 0; i < row.size(); ++i) {
      const int64_t at = row.index[i];
      if (options.kl_loss != KlLoss::kNone) {
        // No importance weight here: the KL term has its own expectation.
        const double scale = options.kl_beta * agg_weight[at];
        const KlTerm kl = KlOfToken(
            kl_kind,
            row.policy[i] - static_cast<double>(input.reference_logprobs[at]));
        result.kl_loss += scale * kl.value;
        grad[i] += scale * kl.grad;
      }
      result.grad[at] = static_cast<T>(grad[i]);
    }
  }
  result.loss += result.kl_loss;
  return result;
}

template <typename T>
absl::StatusOr<std::vector<T>> ProxInterpolate(
    Shape2 shape, std::span<const T> behaviour_logprobs,
    std::span<const T> policy_logprobs, Mask mask,
    const ProxVersions& versions) {
  COX_RETURN_IF_ERROR(CheckSize("mask", mask.size(), shape.size()));
  COX_RETURN_IF_ERROR(
      CheckMasked("behaviour_logprob", behaviour_logprobs, shape, mask));
  COX_RETURN_IF_ERROR(CheckMasked("logprob", policy_logprobs, shape, mask));
  COX_RETURN_IF_ERROR(
      CheckSize("v_beh", versions.behaviour.size(), shape.size()));
  if (versions.policy < versions.proximal) {
    return OutOfRange("v_theta", static_cast<double>(versions.policy),
                      "must be at least v_prox");
  }
  std::vector<T> prox(shape.size(), T{0});
  for (int64_t i = 0; i < shape.size(); ++i) {
    if (mask[i] == 0) continue;
    const int64_t version = versions.behaviour[i];
    if (version < 0) {
      return OutOfRange("v_beh", static_cast<double>(version),
                        "must be at least 0");
    }
    const double behaviour = static_cast<double>(behaviour_logprobs[i]);
    if (version >= versions.proximal) {
      prox[i] = behaviour_logprobs[i];
      continue;
    }
    // v_θ >= v_prox > v_beh, so the denominator is positive.
    const double alpha = static_cast<double>(versions.proximal - version) /
                         static_cast<double>(versions.policy - version);
    prox[i] = static_cast<T>(
        behaviour +
        alpha * (static_cast<double>(policy_logprobs[i]) - behaviour));
  }
  return prox;
}

#define COX_INSTANTIATE(T)                                    \
  template absl::StatusOr<PolicyLossResult<T>> PolicyLoss<T>( \
      const PolicyLossInput<T>&, const PolicyLossOptions&,    \
      const LossNormalizer&);                                 \
  template absl::StatusOr<std::vector<T>> ProxInterpolate<T>( \
      Shape2, std::span<const T>, std::span<const T>, Mask,   \
      const ProxVersions&);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
