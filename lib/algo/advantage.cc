#include "lib/algo/advantage.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "lib/algo/stats.h"

namespace cox {

template <typename T>
absl::StatusOr<GaeResult<T>> Gae(Shape2 shape, std::span<const T> rewards,
                                 std::span<const T> values, Mask mask,
                                 double gamma, double lambda) {
  COX_RETURN_IF_ERROR(CheckSize("mask", mask.size(), shape.size()));
  COX_RETURN_IF_ERROR(CheckMasked("rewards", rewards, shape, mask));
  COX_RETURN_IF_ERROR(CheckMasked("values", values, shape, mask));
  COX_RETURN_IF_ERROR(CheckRange("gamma", gamma, 0, 1));
  COX_RETURN_IF_ERROR(CheckRange("lambda", lambda, 0, 1));
  GaeResult<T> result;
  result.advantages.assign(shape.size(), T{0});
  result.returns.assign(shape.size(), T{0});
  for (int64_t b = 0; b < shape.rows; ++b) {
    double next_advantage = 0;
    double next_value = 0;
    for (int64_t t = shape.cols - 1; t >= 0; --t) {
      const int64_t i = b * shape.cols + t;
      if (mask[i] == 0) continue;
      const double value = static_cast<double>(values[i]);
      const double delta =
          static_cast<double>(rewards[i]) + gamma * next_value - value;
      next_advantage = delta + gamma * lambda * next_advantage;
      next_value = value;
      result.advantages[i] = static_cast<T>(next_advantage);
      result.returns[i] = static_cast<T>(next_advantage + value);
    }
  }
  return result;
}

absl::StatusOr<GroupEstimator> ParseGroupEstimator(std::string_view name) {
  if (name == "rloo") return GroupEstimator::kRloo;
  if (name == "grpo") return GroupEstimator::kGrpo;
  if (name == "dr_grpo") return GroupEstimator::kDrGrpo;
  if (name == "reinforce_pp") return GroupEstimator::kReinforcePp;
  if (name == "reinforce_pp_baseline") {
    return GroupEstimator::kReinforcePpBaseline;
  }
  return absl::InvalidArgumentError(
      "must be rloo, grpo, dr_grpo, reinforce_pp or reinforce_pp_baseline");
}

namespace {

struct Group {
  int64_t members = 0;
  Moments scores;  // of valid members
  double low = 0;
  double high = 0;

  void Add(double score) {
    low = scores.count == 0 ? score : std::min(low, score);
    high = scores.count == 0 ? score : std::max(high, score);
    scores.Add(score);
  }
};

double CentredScore(GroupEstimator kind, const Group& group, double score,
                    double eps) {
  // Fewer than two valid members, or all equal: exactly 0, free of rounding.
  if (group.scores.count < 2 || group.low == group.high) return 0.0;
  const double centred = score - group.scores.mean;
  switch (kind) {
    case GroupEstimator::kRloo:
      // ρ_i − (nμ − ρ_i)/(n − 1) = (ρ_i − μ)·n/(n − 1).
      return centred * (group.scores.count / (group.scores.count - 1));
    case GroupEstimator::kGrpo:
      return centred / (std::sqrt(group.scores.Variance(/*ddof=*/1)) + eps);
    case GroupEstimator::kDrGrpo:
    case GroupEstimator::kReinforcePpBaseline:
    case GroupEstimator::kReinforcePp:
      break;
  }
  return centred;
}

// Return-to-go Σ_{s>=t} r_s over mask 1 positions (γ = 1).
template <typename T>
std::vector<T> ReturnsToGo(Shape2 shape, std::span<const T> rewards,
                           Mask mask) {
  std::vector<T> returns(shape.size(), T{0});
  for (int64_t b = 0; b < shape.rows; ++b) {
    double sum = 0;
    for (int64_t i = (b + 1) * shape.cols - 1; i >= b * shape.cols; --i) {
      if (mask[i] == 0) continue;
      sum += static_cast<double>(rewards[i]);
      returns[i] = static_cast<T>(sum);
    }
  }
  return returns;
}

template <typename T>
absl::StatusOr<std::vector<T>> WhitenAdvantages(std::span<const T> x, Mask mask,
                                                Reducer& reducer) {
  COX_ASSIGN_OR_RETURN(Whitened<T> whitened,
                       Whiten(x, mask, WhitenOptions(), reducer));
  return std::move(whitened.out);
}

}  // namespace

absl::StatusOr<std::vector<double>> GroupBaseline(
    GroupEstimator kind, std::span<const double> scores,
    std::span<const int64_t> group, std::span<const uint8_t> valid,
    double eps) {
  if (kind == GroupEstimator::kReinforcePp) {
    return absl::InvalidArgumentError("kind: reinforce_pp has no groups");
  }
  const int64_t n = static_cast<int64_t>(scores.size());
  COX_RETURN_IF_ERROR(CheckSize("group", group.size(), n));
  if (!valid.empty()) COX_RETURN_IF_ERROR(CheckSize("valid", valid.size(), n));
  COX_RETURN_IF_ERROR(CheckNotNegative("eps", eps));
  const auto is_valid = [&](int64_t i) {
    return valid.empty() || valid[i] != 0;
  };
  std::map<int64_t, Group> groups;
  for (int64_t i = 0; i < n; ++i) {
    Group& g = groups[group[i]];
    ++g.members;
    if (!is_valid(i)) continue;
    if (!std::isfinite(scores[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("scores: non-finite value at row ", i));
    }
    g.Add(scores[i]);
  }
  for (const auto& [id, g] : groups) {
    if (g.members < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("group: ", id, " has a single member"));
    }
  }
  std::vector<double> advantages(n, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    if (!is_valid(i)) continue;
    advantages[i] = CentredScore(kind, groups[group[i]], scores[i], eps);
  }
  return advantages;
}

template <typename T>
absl::StatusOr<std::vector<T>> GroupAdvantages(const GroupInput<T>& input,
                                               Reducer& reducer) {
  const Shape2 shape = input.shape;
  COX_RETURN_IF_ERROR(CheckSize("mask", input.mask.size(), shape.size()));
  if (input.kind == GroupEstimator::kReinforcePp) {
    COX_RETURN_IF_ERROR(
        CheckMasked("token_rewards", input.token_rewards, shape, input.mask));
    const std::vector<T> returns =
        ReturnsToGo(shape, input.token_rewards, input.mask);
    return WhitenAdvantages<T>(returns, input.mask, reducer);
  }

  COX_ASSIGN_OR_RETURN(const std::vector<double> sequence,
                       GroupBaseline(input.kind, input.scores, input.group,
                                     input.valid, input.eps));
  // A rank without rows is fine in any batch.
  const bool identity = input.rows.empty() && shape.rows > 0;
  COX_RETURN_IF_ERROR(CheckSize(
      "rows", identity ? sequence.size() : input.rows.size(), shape.rows));
  std::vector<T> advantages(shape.size(), T{0});
  std::vector<uint8_t> trained(input.mask.begin(), input.mask.end());
  for (int64_t b = 0; b < shape.rows; ++b) {
    const int64_t row = identity ? b : input.rows[b];
    if (row < 0 || row >= static_cast<int64_t>(sequence.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("rows: index ", row, " outside the batch"));
    }
    const bool valid = input.valid.empty() || input.valid[row] != 0;
    for (int64_t i = b * shape.cols; i < (b + 1) * shape.cols; ++i) {
      if (!valid) trained[i] = 0;
      if (trained[i] != 0) advantages[i] = static_cast<T>(sequence[row]);
    }
  }
  if (input.kind != GroupEstimator::kReinforcePpBaseline) return advantages;
  return WhitenAdvantages<T>(advantages, trained, reducer);
}

#define COX_INSTANTIATE(T)                                                   \
  template absl::StatusOr<GaeResult<T>> Gae<T>(                              \
      Shape2, std::span<const T>, std::span<const T>, Mask, double, double); \
  template absl::StatusOr<std::vector<T>> GroupAdvantages<T>(                \
      const GroupInput<T>&, Reducer&);
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox
