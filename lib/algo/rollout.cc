#include "lib/algo/rollout.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "lib/algo/stats.h"

namespace cox {

absl::StatusOr<std::vector<int64_t>> PositionIds(Shape2 shape, Mask mask) {
  COX_RETURN_IF_ERROR(CheckSize("mask", mask.size(), shape.size()));
  std::vector<int64_t> ids(shape.size());
  for (int64_t b = 0; b < shape.rows; ++b) {
    int64_t next = 0;
    for (int64_t i = b * shape.cols; i < (b + 1) * shape.cols; ++i) {
      ids[i] = next;
      next += mask[i] != 0;
    }
    // Padding after the last token: stay within the table of positions.
    const int64_t last = std::max<int64_t>(next - 1, 0);
    for (int64_t i = b * shape.cols; i < (b + 1) * shape.cols; ++i) {
      ids[i] = std::min(ids[i], last);
    }
  }
  return ids;
}

absl::StatusOr<CutResult> CutResponse(Shape2 shape,
                                      std::span<const int64_t> tokens,
                                      const CutOptions& options) {
  COX_RETURN_IF_ERROR(CheckSize("tokens", tokens.size(), shape.size()));
  COX_RETURN_IF_ERROR(CheckNotNegative(
      "min_stop_index", static_cast<double>(options.min_stop_index)));
  const auto stops = [&](int64_t id) {
    return std::find(options.stop_ids.begin(), options.stop_ids.end(), id) !=
           options.stop_ids.end();
  };
  if (stops(options.pad_id)) {
    return absl::InvalidArgumentError(
        "pad_id: is also a stop id, so stopping could not be learned");
  }
  CutResult result;
  result.tokens.assign(tokens.begin(), tokens.end());
  result.mask.assign(shape.size(), 1);
  result.length.assign(shape.rows, shape.cols);
  result.finish.assign(shape.rows, FinishReason::kLength);
  for (int64_t b = 0; b < shape.rows; ++b) {
    const int64_t begin = b * shape.cols;
    int64_t t = std::min(options.min_stop_index, shape.cols);
    while (t < shape.cols && !stops(tokens[begin + t])) ++t;
    if (t == shape.cols) continue;
    result.length[b] = t + 1;
    result.finish[b] = FinishReason::kStop;
    for (int64_t i = begin + t + 1; i < begin + shape.cols; ++i) {
      result.tokens[i] = options.pad_id;
      result.mask[i] = 0;
    }
  }
  return result;
}

absl::StatusOr<KlKind> ParseKlKind(std::string_view name) {
  if (name == "k1") return KlKind::kK1;
  if (name == "k2") return KlKind::kK2;
  if (name == "k3") return KlKind::kK3;
  return absl::InvalidArgumentError("must be k1, k2 or k3");
}

KlTerm KlOfToken(KlKind kind, double delta, bool clamp) {
  switch (kind) {
    case KlKind::kK1:
      return {delta, 1.0};
    case KlKind::kK2:
      return {0.5 * delta * delta, delta};
    case KlKind::kK3:
      break;
  }
  const double bounded = clamp ? std::clamp(delta, -20.0, 20.0) : delta;
  // expm1: k3 is of second order in δ, so e^{−δ} − 1 + δ would cancel.
  KlTerm term{std::expm1(-bounded) + bounded, -std::expm1(-bounded)};
  if (clamp && (bounded != delta || term.value > 10)) {
    term = {std::min(term.value, 10.0), 0.0};
  }
  return term;
}

template <typename T>
absl::StatusOr<KlEstimated<T>> EstimateKl(Shape2 shape,
                                          std::span<const T> logprob,
                                          std::span<const T> ref_logprob,
                                          Mask mask, KlKind kind, bool clamp) {
  COX_RETURN_IF_ERROR(CheckSize("mask", mask.size(), shape.size()));
  COX_RETURN_IF_ERROR(CheckMasked("logprob", logprob, shape, mask));
  COX_RETURN_IF_ERROR(CheckMasked("ref_logprob", ref_logprob, shape, mask));
  KlEstimated<T> result;
  result.kl.assign(shape.size(), T{0});
  result.grad.assign(shape.size(), T{0});
  result.sum.assign(shape.rows, 0.0);
  double total = 0;
  int64_t count = 0;
  for (int64_t b = 0; b < shape.rows; ++b) {
    for (int64_t i = b * shape.cols; i < (b + 1) * shape.cols; ++i) {
      if (mask[i] == 0) continue;
      const KlTerm term = KlOfToken(
          kind,
          static_cast<double>(logprob[i]) - static_cast<double>(ref_logprob[i]),
          clamp);
      result.kl[i] = static_cast<T>(term.value);
      result.grad[i] = static_cast<T>(term.grad);
      result.sum[b] += term.value;
      ++count;
    }
    total += result.sum[b];
  }
  if (count > 0) result.mean = total / static_cast<double>(count);
  return result;
}

absl::StatusOr<ScorePosition> ParseScorePosition(std::string_view name) {
  if (name == "last") return ScorePosition::kLast;
  if (name == "after_last") return ScorePosition::kAfterLast;
  return absl::InvalidArgumentError("must be last or after_last");
}

absl::StatusOr<MissingStop> ParseMissingStop(std::string_view name) {
  if (name == "none") return MissingStop::kNone;
  if (name == "replace") return MissingStop::kReplace;
  if (name == "subtract") return MissingStop::kSubtract;
  return absl::InvalidArgumentError("must be none, replace or subtract");
}

double ShapeScore(double score, FinishReason finish, MissingStop mode,
                  double penalty, std::optional<double> score_clip) {
  if (finish != FinishReason::kStop) {
    if (mode == MissingStop::kReplace) score = -penalty;
    if (mode == MissingStop::kSubtract) score -= penalty;
  }
  if (score_clip) score = std::clamp(score, -*score_clip, *score_clip);
  return score;
}

template <typename T>
absl::StatusOr<ShapedRewards<T>> ShapeRewards(
    const RewardInput<T>& input, const ShapeRewardsOptions& options) {
  const Shape2 shape = input.shape;
  COX_RETURN_IF_ERROR(CheckNotNegative("beta", options.beta));
  if (!std::isfinite(options.missing_stop_value)) {
    return OutOfRange("missing_stop.value", options.missing_stop_value,
                      "must be finite");
  }
  if (options.score_clip) {
    COX_RETURN_IF_ERROR(CheckNotNegative("score_clip", *options.score_clip));
  }
  COX_RETURN_IF_ERROR(CheckSize("scores", input.scores.size(), shape.rows));
  if (!input.finish.empty()) {
    COX_RETURN_IF_ERROR(CheckSize("finish", input.finish.size(), shape.rows));
  }
  COX_ASSIGN_OR_RETURN(KlEstimated<T> kl,
                       EstimateKl(shape, input.logprob, input.ref_logprob,
                                  input.mask, options.kl));
  ShapedRewards<T> result;
  result.kl_sum = std::move(kl.sum);
  result.value_mask.assign(input.mask.begin(), input.mask.end());
  result.rewards.assign(shape.size(), T{0});
  for (int64_t b = 0; b < shape.rows; ++b) {
    int64_t last = -1;
    for (int64_t t = 0; t < shape.cols; ++t) {
      const int64_t i = b * shape.cols + t;
      if (input.mask[i] == 0) continue;
      last = t;
      result.rewards[i] =
          static_cast<T>(-options.beta * static_cast<double>(kl.kl[i]));
    }
    if (last < 0) continue;
    const double raw = static_cast<double>(input.scores[b]);
    if (!std::isfinite(raw)) {
      return absl::InvalidArgumentError(
          absl::StrCat("scores: non-finite value at row ", b));
    }
    const double score = ShapeScore(
        raw, input.finish.empty() ? FinishReason::kStop : input.finish[b],
        options.missing_stop, options.missing_stop_value, options.score_clip);
    const bool after =
        options.position == ScorePosition::kAfterLast && last + 1 < shape.cols;
    const int64_t at = b * shape.cols + last + (after ? 1 : 0);
    result.rewards[at] =
        static_cast<T>(static_cast<double>(result.rewards[at]) + score);
    result.value_mask[at] = 1;
  }
  return result;
}

absl::StatusOr<RewardNormalizer> FitRewardNormalizer(
    std::span<const double> scores, NormalizeMode mode) {
  if (scores.empty()) return absl::InvalidArgumentError("scores: empty");
  COX_RETURN_IF_ERROR(CheckAllFinite("scores", scores));
  Moments moments;
  for (const double score : scores) moments.Add(score);
  RewardNormalizer normalizer;
  if (mode == NormalizeMode::kGain) {
    const double variance = moments.Variance(/*ddof=*/1);
    if (!(variance > 0)) {
      return absl::InvalidArgumentError(
          "scores: gain needs at least two different scores");
    }
    normalizer.gain = 1 / std::sqrt(variance);
  }
  normalizer.bias = -moments.mean * normalizer.gain;
  return normalizer;
}

absl::StatusOr<double> OverlongPenalty(int64_t length, int64_t l_max,
                                       int64_t l_cache) {
  COX_RETURN_IF_ERROR(CheckNotNegative("lengths", static_cast<double>(length)));
  COX_RETURN_IF_ERROR(CheckNotNegative("l_max", static_cast<double>(l_max)));
  COX_RETURN_IF_ERROR(CheckPositive("l_cache", static_cast<double>(l_cache)));
  const int64_t free = l_max - l_cache;
  if (length <= free) return 0.0;
  if (length > l_max) return -1.0;
  return -static_cast<double>(length - free) / static_cast<double>(l_cache);
}

absl::StatusOr<std::vector<uint8_t>> DynamicFilter(
    std::span<const double> metric, std::span<const int64_t> group) {
  COX_RETURN_IF_ERROR(
      CheckSize("group", group.size(), static_cast<int64_t>(metric.size())));
  COX_RETURN_IF_ERROR(CheckAllFinite("metric", metric));
  std::map<int64_t, std::pair<double, double>> range;
  for (size_t i = 0; i < metric.size(); ++i) {
    const auto [it, added] = range.try_emplace(group[i], metric[i], metric[i]);
    if (added) continue;
    it->second.first = std::min(it->second.first, metric[i]);
    it->second.second = std::max(it->second.second, metric[i]);
  }
  std::vector<uint8_t> keep(metric.size());
  for (size_t i = 0; i < metric.size(); ++i) {
    const auto& [low, high] = range[group[i]];
    keep[i] = low < high;
  }
  return keep;
}

absl::StatusOr<KlController> KlController::Fixed(double beta) {
  COX_RETURN_IF_ERROR(CheckNotNegative("beta", beta));
  return KlController(/*adaptive=*/false, beta, /*target=*/1, /*horizon=*/1);
}

absl::StatusOr<KlController> KlController::Adaptive(double beta, double target,
                                                    double horizon) {
  COX_RETURN_IF_ERROR(CheckNotNegative("beta", beta));
  COX_RETURN_IF_ERROR(CheckPositive("target", target));
  COX_RETURN_IF_ERROR(CheckPositive("horizon", horizon));
  return KlController(/*adaptive=*/true, beta, target, horizon);
}

absl::Status KlController::Update(double kl, double n) {
  if (!std::isfinite(kl)) return OutOfRange("kl", kl, "must be finite");
  COX_RETURN_IF_ERROR(CheckNotNegative("n", n));
  if (!adaptive_) return absl::OkStatus();
  const double error = std::clamp(kl / target_ - 1, -0.2, 0.2);
  beta_ *= 1 + error * n / horizon_;
  return absl::OkStatus();
}

#define COX_INSTANTIATE(T)                                                 \
  template absl::StatusOr<KlEstimated<T>> EstimateKl<T>(                   \
      Shape2, std::span<const T>, std::span<const T>, Mask, KlKind, bool); \
  template absl::StatusOr<ShapedRewards<T>> ShapeRewards<T>(               \
      const RewardInput<T>&, const ShapeRewardsOptions&);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
