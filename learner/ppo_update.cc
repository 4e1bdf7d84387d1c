#include "learner/ppo_update.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/rng.h"

namespace cox {
namespace {

// Part of a RolloutBatch as dense [rows, T] arrays.
struct Part {
  Part(const RolloutBatch& source, std::span<const int64_t> indices)
      : batch(source),
        rows(indices.begin(), indices.end()),
        shape{static_cast<int64_t>(indices.size()), source.shape.cols} {
    std::vector<const Sequence*> sequences;
    for (const int64_t row : rows) {
      sequences.push_back(&batch.sequences[static_cast<size_t>(row)]);
    }
    tokens = MakeTokenBatch(sequences);
  }

  template <typename T>
  std::vector<double> Take(const std::vector<T>& values) const {
    std::vector<double> out;
    for (const int64_t row : rows) {
      const auto begin =
          values.begin() + static_cast<std::ptrdiff_t>(batch.At(row, 0));
      out.insert(out.end(), begin, begin + shape.cols);
    }
    return out;
  }
  std::vector<uint8_t> TakeMask(const std::vector<uint8_t>& mask) const {
    std::vector<uint8_t> out;
    for (const int64_t row : rows) {
      const auto begin =
          mask.begin() + static_cast<std::ptrdiff_t>(batch.At(row, 0));
      out.insert(out.end(), begin, begin + shape.cols);
    }
    return out;
  }

  // Calls visit(place in [rows, T], place in the engine's [B, L]) for answer
  // tokens; `extra` = 1 adds the place after the last one where it exists.
  template <typename Visit>
  void ForTokens(int64_t extra, Visit visit) const {
    for (int64_t r = 0; r < shape.rows; ++r) {
      const Sequence& sequence =
          batch.sequences[static_cast<size_t>(rows[static_cast<size_t>(r)])];
      const int64_t end = std::min(sequence.targets() + extra, shape.cols);
      for (int64_t t = 0; t < end; ++t) {
        visit(static_cast<size_t>(r * shape.cols + t),
              TargetIndex(tokens, sequence, r, t));
      }
    }
  }
  std::vector<double> Gather(std::span<const float> output,
                             int64_t extra) const {
    std::vector<double> out(static_cast<size_t>(shape.size()), 0.0);
    ForTokens(extra,
              [&](size_t to, size_t from) { out[to] = double{output[from]}; });
    return out;
  }

  const RolloutBatch& batch;
  std::vector<int64_t> rows;
  Shape2 shape;
  TokenBatch tokens;
};

LossNormalizer CountRows(const RolloutBatch& batch,
                         const std::vector<int64_t>& rows, Mask mask,
                         double t_max) {
  LossNormalizer normalizer;
  normalizer.t_max = t_max;
  for (const int64_t row : rows) {
    const int64_t length = RowLength(batch.shape, mask, row);
    normalizer.tokens += static_cast<double>(length);
    normalizer.sequences += length > 0 ? 1 : 0;
  }
  return normalizer;
}

std::vector<int64_t> RowsAt(const Minibatch& minibatch,
                            std::span<const int64_t> places) {
  std::vector<int64_t> rows;
  for (const int64_t place : places) {
    rows.push_back(minibatch.rows[static_cast<size_t>(place)]);
  }
  return rows;
}

// Adds −coef · agg(entropy) to the loss: gradient by entropy, and the value.
absl::StatusOr<double> EntropyBonus(const PpoOptions& options, const Part& part,
                                    Mask mask, const LossNormalizer& normalizer,
                                    const LogprobOutput& output,
                                    LogprobGradient* gradient) {
  COX_ASSIGN_OR_RETURN(
      const std::vector<double> weight,
      TokenWeights(part.shape, mask, options.loss.agg, normalizer));
  gradient->entropies.assign(output.entropies.size(), 0.0f);
  double loss = 0;
  part.ForTokens(0, [&](size_t i, size_t place) {
    loss -= options.entropy_coef * weight[i] * double{output.entropies[place]};
    gradient->entropies[place] =
        static_cast<float>(-options.entropy_coef * weight[i]);
  });
  return loss;
}

// The proximal log-probs, constant in the gradient. While step s trains, the
// weights are on their way from version s - 1 to s.
absl::StatusOr<std::vector<double>> ClipCentre(
    const PpoOptions& options, const Part& part,
    const std::vector<double>& policy, Mask mask) {
  const RolloutBatch& batch = part.batch;
  if (options.prox != ProxMode::kInterpolate) {
    return part.Take(batch.proximal);
  }
  std::vector<int64_t> versions;
  for (const int64_t row : part.rows) {
    versions.insert(versions.end(), static_cast<size_t>(part.shape.cols),
                    batch.version[static_cast<size_t>(row)]);
  }
  const std::vector<double> behaviour = part.Take(batch.behaviour);
  return ProxInterpolate<double>(
      part.shape, behaviour, policy, mask,
      {versions, batch.current_version, batch.current_version + 1});
}

// Loss, gradient and sums of one micro-batch's outputs.
absl::Status PolicyPart(const PpoOptions& options, const Part& part,
                        const LossNormalizer& normalizer,
                        const LogprobOutput& output, LogprobGradient* gradient,
                        PolicySums* sums) {
  gradient->logprobs.assign(output.logprobs.size(), 0.0f);
  if (AnyNonFinite(output.logprobs) || AnyNonFinite(output.entropies)) {
    sums->finite = false;
    return absl::OkStatus();
  }
  const RolloutBatch& batch = part.batch;
  const std::vector<uint8_t> mask = part.TakeMask(batch.mask);
  const std::vector<double> policy = part.Gather(output.logprobs, 0);
  COX_ASSIGN_OR_RETURN(const std::vector<double> proximal,
                       ClipCentre(options, part, policy, mask));
  const std::vector<double> advantages = part.Take(batch.advantages);
  const std::vector<double> reference = part.Take(batch.reference);
  std::vector<double> behaviour;
  if (options.loss.is_mode != IsMode::kNone ||
      options.loss.off_policy_delta.has_value() ||
      options.loss.kind == PolicyLossKind::kProbDiff) {
    behaviour = part.Take(batch.behaviour);
  }
  const PolicyLossInput<double> input = {.shape = part.shape,
                                         .policy_logprobs = policy,
                                         .clip_logprobs = proximal,
                                         .advantages = advantages,
                                         .mask = mask,
                                         .behaviour_logprobs = behaviour,
                                         .reference_logprobs = reference};
  COX_ASSIGN_OR_RETURN(const PolicyLossResult<double> loss,
                       PolicyLoss<double>(input, options.loss, normalizer));
  PolicySums local;
  local.loss = loss.loss;
  local.kl_loss = loss.kl_loss;
  local.loss_sums = loss.sums;
  part.ForTokens(0, [&](size_t i, size_t place) {
    gradient->logprobs[place] = static_cast<float>(loss.grad[i]);
    if (mask[i] != 0) {
      const double u =
          std::exp(std::clamp(policy[i] - proximal[i], -20.0, 20.0));
      local.ratio_max_dev = std::max(local.ratio_max_dev, std::abs(u - 1));
      if (!output.entropies.empty()) {
        local.entropy += double{output.entropies[place]};
        local.entropy_tokens += 1;
      }
    }
  });
  if (options.entropy_coef > 0) {
    COX_ASSIGN_OR_RETURN(
        const double bonus,
        EntropyBonus(options, part, mask, normalizer, output, gradient));
    local.loss += bonus;
  }
  sums->Merge(local);
  return absl::OkStatus();
}

absl::Status ValuePart(const PpoOptions& options, const PpoParts& parts,
                       const Part& part, const LossNormalizer& normalizer,
                       std::span<const float> output, std::span<float> gradient,
                       ValueSums* sums) {
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  if (AnyNonFinite(output)) {
    sums->finite = false;
    return absl::OkStatus();
  }
  const double gain = parts.critic->config().reward_gain;
  const double bias = parts.critic->config().reward_bias;
  std::vector<double> values = part.Gather(output, /*extra=*/1);
  for (double& value : values) {
    value = gain * value + bias;
  }
  const std::vector<uint8_t> mask = part.TakeMask(part.batch.value_mask);
  const std::vector<double> old_values = part.Take(part.batch.values);
  const std::vector<double> returns = part.Take(part.batch.returns);
  const ValueLossInput<double> input = {.shape = part.shape,
                                        .values = values,
                                        .old_values = old_values,
                                        .returns = returns,
                                        .mask = mask};
  COX_ASSIGN_OR_RETURN(
      const ValueLossResult<double> loss,
      ValueLoss<double>(input, {.clip = options.value_clip}, normalizer));
  part.ForTokens(/*extra=*/1, [&](size_t i, size_t place) {
    // += : the place after the last answer token is the last token's own.
    gradient[place] += static_cast<float>(gain * loss.grad[i]);
  });
  ValueSums local;
  local.loss = loss.loss;
  local.loss_sums = loss.sums;
  sums->Merge(local);
  return absl::OkStatus();
}

}  // namespace

void PolicySums::Merge(const PolicySums& other) {
  loss += other.loss;
  kl_loss += other.kl_loss;
  entropy += other.entropy;
  entropy_tokens += other.entropy_tokens;
  ratio_max_dev = std::max(ratio_max_dev, other.ratio_max_dev);
  loss_sums.Merge(other.loss_sums);
  finite = finite && other.finite;
}

void ValueSums::Merge(const ValueSums& other) {
  loss += other.loss;
  loss_sums.Merge(other.loss_sums);
  finite = finite && other.finite;
}

std::vector<Minibatch> MakeMinibatches(const RolloutBatch& batch,
                                       const PpoOptions& options, int64_t step,
                                       int64_t epoch) {
  const int64_t n = batch.shape.rows;
  const std::vector<int64_t> order = Permutation(
      n, options.seed,
      absl::StrCat("ppo/", options.rollout.stage, "/", step, "/", epoch));
  std::vector<Minibatch> minibatches;
  for (int64_t m = 0; m < options.minibatches; ++m) {
    Minibatch minibatch;
    for (int64_t j = m * n / options.minibatches;
         j < (m + 1) * n / options.minibatches; ++j) {
      const int64_t row = order[static_cast<size_t>(j)];
      if (batch.trained[static_cast<size_t>(row)] != 0) {
        minibatch.rows.push_back(row);
      }
    }
    minibatch.policy =
        CountRows(batch, minibatch.rows, batch.mask, options.t_max);
    minibatch.value =
        CountRows(batch, minibatch.rows, batch.value_mask, options.t_max);
    minibatches.push_back(std::move(minibatch));
  }
  return minibatches;
}

absl::Status FillModelOutputs(const PpoOptions& options, const PpoParts& parts,
                              const Shards& shards, RolloutBatch* batch) {
  const auto forward = [&](std::span<const int64_t> rows) -> absl::Status {
    const Part part(*batch, rows);
    LogprobOutput output;
    if (options.prox == ProxMode::kRecompute) {
      COX_ASSIGN_OR_RETURN(
          output, parts.policy->Logprobs(part.tokens, options.temperature,
                                         /*want_entropy=*/false));
    }
    std::vector<float> values;
    double gain = 1;
    double bias = 0;
    if (parts.critic != nullptr) {
      COX_ASSIGN_OR_RETURN(values, parts.critic->Values(part.tokens));
      gain = parts.critic->config().reward_gain;
      bias = parts.critic->config().reward_bias;
    }
    const auto global = [&](size_t i) {
      const int64_t row = part.rows[i / static_cast<size_t>(part.shape.cols)];
      return batch->At(
          row, static_cast<int64_t>(i % static_cast<size_t>(part.shape.cols)));
    };
    part.ForTokens(0, [&](size_t i, size_t place) {
      if (batch->mask[global(i)] != 0) {
        batch->proximal[global(i)] =
            options.prox == ProxMode::kRecompute
                ? output.logprobs[place]
                : static_cast<float>(batch->behaviour[global(i)]);
      }
    });
    if (parts.critic != nullptr) {
      part.ForTokens(/*extra=*/1, [&](size_t i, size_t place) {
        batch->values[global(i)] =
            static_cast<float>(gain * double{values[place]} + bias);
      });
    }
    return absl::OkStatus();
  };
  COX_RETURN_IF_ERROR(shards.ForOwn([&](int64_t shard, size_t) {
    std::vector<int64_t> rows = shards.Elements(batch->shape.rows, shard);
    // An excluded sequence needs no forward pass.
    std::erase_if(rows, [&](int64_t row) {
      return batch->trained[static_cast<size_t>(row)] == 0;
    });
    return ForMicroBatches(rows, options.micro_batch, forward);
  }));
  COX_RETURN_IF_ERROR(
      parts.group->AllReduceSum(std::span<float>(batch->proximal)));
  if (parts.critic != nullptr) {
    COX_RETURN_IF_ERROR(
        parts.group->AllReduceSum(std::span<float>(batch->values)));
  }
  return absl::OkStatus();
}

absl::StatusOr<PolicySums> PolicyBackward(const PpoOptions& options,
                                          const PpoParts& parts,
                                          const RolloutBatch& batch,
                                          const Minibatch& minibatch,
                                          std::span<const int64_t> places,
                                          bool want_entropy) {
  PolicySums sums;
  const auto backward = [&](std::span<const int64_t> rows) -> absl::Status {
    const Part part(batch, rows);
    return parts.policy->AccumulateLogprobs(
        part.tokens, options.temperature, want_entropy,
        [&](const LogprobOutput& output, LogprobGradient* gradient) {
          return PolicyPart(options, part, minibatch.policy, output, gradient,
                            &sums);
        });
  };
  // The pretraining mix follows (PpoTrainer).
  const bool more = options.ptx_coef > 0;
  COX_RETURN_IF_ERROR(
      BackwardMicroBatches(*parts.policy, RowsAt(minibatch, places),
                           options.micro_batch, backward, more));
  if (!sums.finite) {
    COX_RETURN_IF_ERROR(PoisonGradient(*parts.policy));
  }
  return sums;
}

absl::StatusOr<ValueSums> ValueBackward(const PpoOptions& options,
                                        const PpoParts& parts,
                                        const RolloutBatch& batch,
                                        const Minibatch& minibatch,
                                        std::span<const int64_t> places) {
  ValueSums sums;
  const auto backward = [&](std::span<const int64_t> rows) -> absl::Status {
    const Part part(batch, rows);
    return parts.critic->AccumulateValues(
        part.tokens,
        [&](std::span<const float> output, std::span<float> gradient) {
          return ValuePart(options, parts, part, minibatch.value, output,
                           gradient, &sums);
        });
  };
  COX_RETURN_IF_ERROR(BackwardMicroBatches(
      *parts.critic, RowsAt(minibatch, places), options.micro_batch, backward));
  if (!sums.finite) {
    COX_RETURN_IF_ERROR(PoisonGradient(*parts.critic));
  }
  return sums;
}

}  // namespace cox
