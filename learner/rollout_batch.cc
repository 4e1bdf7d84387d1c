#include "learner/rollout_batch.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/algo/stats.h"

namespace cox {
namespace {

absl::Status CheckVersion(const Trajectory& trajectory, int64_t step,
                          const RolloutOptions& options) {
  const int64_t version = trajectory.version.step;
  const int64_t current = step - 1;
  int64_t low = current;
  int64_t high = current;
  if (options.mode == RolloutSchedule::kFixedLag) {
    low = high = std::max<int64_t>(0, current - options.lag);
  } else if (options.mode == RolloutSchedule::kStreaming) {
    low = current - options.eta;
  }
  if (trajectory.version.stage != options.stage || version < low ||
      version > high) {
    return absl::InternalError(absl::StrCat(
        "trajectory ", trajectory.id.ToString(), " in step ", step,
        ": expected a version of stage ", options.stage, " from ", low, " to ",
        high, ", found ", trajectory.version.ToString()));
  }
  return absl::OkStatus();
}

absl::Status CheckLogprobs(const Trajectory& trajectory,
                           const RolloutOptions& options) {
  const size_t tokens = trajectory.response_ids.size();
  if (trajectory.behaviour_logprobs.size() != tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "trajectory ", trajectory.id.ToString(), ": expected ", tokens,
        " behaviour log-probs, found ", trajectory.behaviour_logprobs.size()));
  }
  const size_t reference = trajectory.reference_logprobs.size();
  if (reference != tokens && (options.needs_reference || reference != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("trajectory ", trajectory.id.ToString(), ": expected ",
                     tokens, " reference log-probs, found ", reference));
  }
  return absl::OkStatus();
}

Sequence ToSequence(const Trajectory& trajectory) {
  Sequence sequence;
  sequence.ids = trajectory.prompt_ids;
  sequence.first_target = sequence.length();
  sequence.ids.insert(sequence.ids.end(), trajectory.response_ids.begin(),
                      trajectory.response_ids.end());
  sequence.instruction_ids = trajectory.instruction_ids;
  return sequence;
}

bool IsTrained(const Trajectory& trajectory) {
  return trajectory.reward_total.has_value() &&
         trajectory.finish != FinishReason::kAbort &&
         !trajectory.response_ids.empty();
}

// Sums behind the metrics of MakeRolloutBatch.
struct Totals {
  double scores = 0;
  double gold = 0;
  double gold_count = 0;
  double entropy = 0;
  double stopped = 0;
  double tokens = 0;
  double prompt_tokens = 0;
  double staleness_sum = 0;
  int64_t staleness = 0;
  int64_t longest = 0;

  void Add(const Trajectory& trajectory, int64_t step) {
    scores += *trajectory.reward_total;
    for (const auto& [name, value] : trajectory.reward_parts) {
      if (name == "gold") {
        gold += value;
        gold_count += 1;
      }
    }
    for (const float logprob : trajectory.behaviour_logprobs) {
      entropy -= double{logprob};
    }
    stopped += trajectory.finish == FinishReason::kStop ? 1 : 0;
    tokens += static_cast<double>(trajectory.response_ids.size());
    const int64_t length = static_cast<int64_t>(trajectory.response_ids.size());
    longest = std::max(longest, length);
    prompt_tokens += static_cast<double>(trajectory.prompt_ids.size() +
                                         trajectory.instruction_ids.size());
    const int64_t age = step - 1 - trajectory.version.step;
    staleness = std::max(staleness, age);
    staleness_sum += static_cast<double>(age);
  }
  void Finish(RolloutBatch* batch) const {
    const double n = static_cast<double>(batch->trained_count);
    auto& metrics = batch->metrics;
    metrics["rollout/excluded"] =
        static_cast<double>(batch->shape.rows - batch->trained_count);
    metrics["async/staleness_max"] = static_cast<double>(staleness);
    if (n == 0) {
      return;
    }
    metrics["objective/scores"] = scores / n;
    metrics["objective/entropy"] = entropy / n;
    metrics["rollout/stop_frac"] = stopped / n;
    metrics["rollout/length"] = tokens / n;
    metrics["rollout/length_max"] = static_cast<double>(longest);
    metrics["rollout/prompt_length"] = prompt_tokens / n;
    metrics["async/staleness_mean"] = staleness_sum / n;
    if (gold_count > 0) {
      metrics["objective/gold"] = gold / gold_count;
    }
  }
};

// Shares of answers that never train, units, and the spread within prompts.
void CountShares(std::span<const Trajectory> trajectories,
                 RolloutBatch* batch) {
  double aborted = 0;
  double unscored = 0;
  std::set<UnitId> units;
  std::map<int64_t, Moments> groups;
  for (size_t b = 0; b < trajectories.size(); ++b) {
    const Trajectory& trajectory = trajectories[b];
    units.insert(trajectory.id.unit);
    if (trajectory.finish == FinishReason::kAbort) {
      aborted += 1;
    } else if (!trajectory.reward_total.has_value()) {
      unscored += 1;
    }
    if (batch->trained[b] != 0) {
      groups[batch->group[b]].Add(batch->scores[b]);
    }
  }
  double spread = 0;
  double wide = 0;
  for (const auto& [group, moments] : groups) {
    if (moments.count > 1) {
      spread += std::sqrt(moments.Variance(/*ddof=*/1));
      wide += 1;
    }
  }
  if (wide > 0) {
    batch->metrics["rollout/group_std"] = spread / wide;
  }
  const double n = std::max<double>(1, static_cast<double>(batch->shape.rows));
  batch->metrics["rollout/abort_frac"] = aborted / n;
  batch->metrics["rollout/unscored_frac"] = unscored / n;
  batch->metrics["rollout/units"] = static_cast<double>(units.size());
}

void Exclude(int64_t row, RolloutBatch* batch) {
  for (int64_t t = 0; t < batch->shape.cols; ++t) {
    const size_t i = batch->At(row, t);
    batch->mask[i] = 0;
    batch->behaviour[i] = 0;
    batch->reference[i] = 0;
  }
  batch->trained[static_cast<size_t>(row)] = 0;
  batch->scores[static_cast<size_t>(row)] = 0;
  --batch->trained_count;
}

// Dynamic sampling (docs/algorithms.md §6): a prompt whose answers all have one
// score teaches an estimator of groups nothing. Prompts are taken in unit
// order, so that the choice is a function of the batch.
absl::Status SelectPrompts(const RolloutOptions& options, RolloutBatch* batch) {
  std::vector<int64_t> rows;
  std::vector<int64_t> groups;
  std::vector<double> scores;
  const ShapeRewardsOptions& shape = options.shape;
  for (int64_t b = 0; b < batch->shape.rows; ++b) {
    const size_t i = static_cast<size_t>(b);
    if (batch->trained[i] == 0) continue;
    rows.push_back(b);
    groups.push_back(batch->group[i]);
    scores.push_back(ShapeScore(batch->scores[i], batch->finish[i],
                                shape.missing_stop, shape.missing_stop_value,
                                shape.score_clip));
  }
  COX_ASSIGN_OR_RETURN(const std::vector<uint8_t> differs,
                       DynamicFilter(scores, groups));
  double filtered = 0;
  double reserve = 0;
  std::set<int64_t> kept;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool full =
        options.train_prompts > 0 && !kept.contains(groups[i]) &&
        static_cast<int64_t>(kept.size()) >= options.train_prompts;
    if (differs[i] != 0 && !full) {
      kept.insert(groups[i]);
      continue;
    }
    (differs[i] == 0 ? filtered : reserve) += 1;
    Exclude(rows[i], batch);
  }
  batch->metrics["rollout/filtered"] = filtered;
  batch->metrics["rollout/reserve"] = reserve;
  batch->metrics["rollout/trained_prompts"] = static_cast<double>(kept.size());
  return absl::OkStatus();
}

// Mean and standard deviation of masked values, for metrics only.
Moments MaskedMoments(std::span<const double> values, Mask mask) {
  Moments moments;
  for (size_t i = 0; i < values.size(); ++i) {
    if (mask[i] != 0) {
      moments.Add(values[i]);
    }
  }
  return moments;
}

void FillRow(const Trajectory& trajectory, int64_t row, RolloutBatch* batch) {
  for (size_t t = 0; t < trajectory.response_ids.size(); ++t) {
    const size_t i = batch->At(row, static_cast<int64_t>(t));
    batch->mask[i] = 1;
    batch->behaviour[i] = double{trajectory.behaviour_logprobs[t]};
    if (!trajectory.reference_logprobs.empty()) {
      batch->reference[i] = double{trajectory.reference_logprobs[t]};
    }
  }
}

std::vector<double> Widen(std::span<const float> values) {
  return {values.begin(), values.end()};
}

// offpolicy/* and mismatch/*: behaviour against proximal log-probs.
void CompareBehaviour(RolloutBatch* batch) {
  double w_sum = 0;
  double w_squared = 0;
  double w_max = 0;
  double tokens = 0;
  double max_abs = 0;
  double k3 = 0;
  double same_tokens = 0;
  for (size_t i = 0; i < batch->mask.size(); ++i) {
    if (batch->mask[i] == 0) {
      continue;
    }
    const double delta = batch->behaviour[i] - double{batch->proximal[i]};
    const double w = std::exp(std::clamp(-delta, -20.0, 20.0));
    w_sum += w;
    w_squared += w * w;
    w_max = std::max(w_max, w);
    tokens += 1;
    if (batch->same_version[i / static_cast<size_t>(batch->shape.cols)] != 0) {
      max_abs = std::max(max_abs, std::abs(delta));
      k3 += KlOfToken(KlKind::kK3, delta).value;
      same_tokens += 1;
    }
  }
  if (tokens > 0) {
    batch->metrics["offpolicy/w_mean"] = w_sum / tokens;
    batch->metrics["offpolicy/w_max"] = w_max;
    batch->metrics["offpolicy/ess"] = w_sum * w_sum / (tokens * w_squared);
  }
  if (same_tokens > 0) {
    batch->metrics["mismatch/max_abs"] = max_abs;
    batch->metrics["mismatch/k3"] = k3 / same_tokens;
  }
}

void ReportAdvantages(RolloutBatch* batch) {
  const Moments moments = MaskedMoments(batch->advantages, batch->mask);
  batch->metrics["advantage/mean"] = moments.mean;
  batch->metrics["advantage/std"] = std::sqrt(moments.Variance());
}

absl::Status GroupedAdvantages(const RolloutOptions& options,
                               std::span<const double> rewards,
                               RolloutBatch* batch) {
  const Shape2 shape = batch->shape;
  // The sequence's reward: score, and the KL penalty when it is in the reward.
  std::vector<double> totals(static_cast<size_t>(shape.rows), 0.0);
  for (int64_t b = 0; b < shape.rows; ++b) {
    for (int64_t t = 0; t < shape.cols; ++t) {
      totals[static_cast<size_t>(b)] += rewards[batch->At(b, t)];
    }
  }
  LocalReducer reducer;
  const GroupInput<double> input = {.kind = *options.group,
                                    .shape = shape,
                                    .mask = batch->mask,
                                    .scores = totals,
                                    .group = batch->group,
                                    .valid = batch->trained,
                                    .rows = {},
                                    .token_rewards = rewards};
  COX_ASSIGN_OR_RETURN(batch->advantages,
                       GroupAdvantages<double>(input, reducer));
  ReportAdvantages(batch);
  return absl::OkStatus();
}

absl::Status CriticAdvantages(const RolloutOptions& options,
                              std::span<const double> rewards,
                              RolloutBatch* batch) {
  LocalReducer reducer;
  const std::vector<double> values = Widen(batch->values);
  COX_ASSIGN_OR_RETURN(
      GaeResult<double> gae,
      Gae<double>(batch->shape, rewards, values, batch->value_mask,
                  options.gamma, options.lambda));
  batch->returns = std::move(gae.returns);
  batch->advantages = std::move(gae.advantages);
  for (size_t i = 0; i < batch->mask.size(); ++i) {
    if (batch->mask[i] == 0) {
      batch->advantages[i] = 0;  // the place after the last has a value only
    }
  }
  ReportAdvantages(batch);
  batch->metrics["val/mean"] = MaskedMoments(values, batch->value_mask).mean;
  batch->metrics["val/return_mean"] =
      MaskedMoments(batch->returns, batch->value_mask).mean;
  if (options.whiten_advantages) {
    COX_ASSIGN_OR_RETURN(
        Whitened<double> white,
        Whiten<double>(batch->advantages, batch->mask, {}, reducer));
    batch->advantages = std::move(white.out);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RolloutBatch> MakeRolloutBatch(
    int64_t step, std::span<const Trajectory> trajectories,
    const RolloutOptions& options) {
  RolloutBatch batch;
  batch.shape.rows = static_cast<int64_t>(trajectories.size());
  batch.shape.cols = 1;
  batch.current_version = step - 1;
  for (const Trajectory& trajectory : trajectories) {
    batch.shape.cols = std::max(
        batch.shape.cols, static_cast<int64_t>(trajectory.response_ids.size()));
  }
  const size_t size = static_cast<size_t>(batch.shape.size());
  batch.mask.assign(size, 0);
  batch.behaviour.assign(size, 0.0);
  batch.reference.assign(size, 0.0);
  batch.proximal.assign(size, 0.0f);
  batch.values.assign(size, 0.0f);
  std::map<std::tuple<UnitId, int32_t>, int64_t> groups;
  Totals totals;
  for (int64_t b = 0; b < batch.shape.rows; ++b) {
    const Trajectory& trajectory = trajectories[static_cast<size_t>(b)];
    COX_RETURN_IF_ERROR(CheckVersion(trajectory, step, options));
    const bool trained = IsTrained(trajectory);
    batch.sequences.push_back(ToSequence(trajectory));
    batch.trained.push_back(trained ? 1 : 0);
    batch.finish.push_back(trajectory.finish);
    batch.scores.push_back(trained ? *trajectory.reward_total : 0.0);
    batch.same_version.push_back(trajectory.version.step == step - 1 ? 1 : 0);
    batch.version.push_back(trajectory.version.step);
    const auto group =
        groups.try_emplace({trajectory.id.unit, trajectory.id.prompt},
                           static_cast<int64_t>(groups.size()));
    batch.group.push_back(group.first->second);
    if (trained) {
      COX_RETURN_IF_ERROR(CheckLogprobs(trajectory, options));
      batch.has_reference &= !trajectory.reference_logprobs.empty();
      FillRow(trajectory, b, &batch);
      if (options.overlong_cache > 0) {
        COX_ASSIGN_OR_RETURN(
            const double penalty,
            OverlongPenalty(
                static_cast<int64_t>(trajectory.response_ids.size()),
                options.overlong_max, options.overlong_cache));
        batch.scores.back() += penalty;
      }
      ++batch.trained_count;
      totals.Add(trajectory, step);
    }
  }
  totals.Finish(&batch);
  CountShares(trajectories, &batch);
  if (options.dynamic_sampling) {
    COX_RETURN_IF_ERROR(SelectPrompts(options, &batch));
  }
  return batch;
}

bool HasNonFinite(const RolloutBatch& batch) {
  // Places outside the mask hold 0, so whole arrays can be scanned.
  return AnyNonFinite(batch.proximal) || AnyNonFinite(batch.values);
}

absl::Status ComputeAdvantages(const RolloutOptions& options, double beta,
                               RolloutBatch* batch) {
  const std::vector<double> proximal = Widen(batch->proximal);
  if (!batch->has_reference) {
    batch->reference = proximal;
  }
  ShapeRewardsOptions shape = options.shape;
  shape.beta = beta;
  const RewardInput<double> input = {.shape = batch->shape,
                                     .logprob = proximal,
                                     .ref_logprob = batch->reference,
                                     .mask = batch->mask,
                                     .scores = batch->scores,
                                     .finish = batch->finish};
  COX_ASSIGN_OR_RETURN(ShapedRewards<double> shaped,
                       ShapeRewards<double>(input, shape));
  // The metric and the controller use k1 whatever is in the reward (§5.2, §9).
  COX_ASSIGN_OR_RETURN(
      KlEstimated<double> k1,
      EstimateKl<double>(batch->shape, proximal, batch->reference, batch->mask,
                         KlKind::kK1));
  batch->kl_sum = std::move(k1.sum);
  batch->value_mask = std::move(shaped.value_mask);
  double kl = 0;
  for (const double sum : batch->kl_sum) {
    kl += sum;
  }
  batch->mean_kl = batch->trained_count > 0
                       ? kl / static_cast<double>(batch->trained_count)
                       : 0.0;
  batch->metrics["objective/kl"] = batch->mean_kl;
  batch->metrics["objective/score_total"] =
      batch->metrics["objective/scores"] - beta * batch->mean_kl;
  batch->metrics["objective/non_score_reward"] = -beta * batch->mean_kl;
  CompareBehaviour(batch);

  const bool token_rewards = !options.group.has_value() ||
                             *options.group == GroupEstimator::kReinforcePp;
  if (options.whiten_rewards && token_rewards) {
    LocalReducer reducer;
    COX_ASSIGN_OR_RETURN(Whitened<double> white,
                         Whiten<double>(shaped.rewards, batch->value_mask,
                                        {.shift_mean = false}, reducer));
    shaped.rewards = std::move(white.out);
  }
  return options.group.has_value()
             ? GroupedAdvantages(options, shaped.rewards, batch)
             : CriticAdvantages(options, shaped.rewards, batch);
}

}  // namespace cox
