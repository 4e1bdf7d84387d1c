// MakeKtoTrainer: answers labelled good or bad, each on its own.

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "learner/preference_objective.h"
#include "learner/reference_logprobs.h"

namespace cox {
namespace {

struct KtoExample {
  Sequence sequence;
  uint8_t desirable = 0;
  double reference = 0;  // sum of log-probs
  // This example's prompt with the answer to another prompt; without targets
  // when there is none.
  Sequence mismatch;
  double mismatch_reference = 0;
};

bool SamePrompt(const Sequence& a, const Sequence& b) {
  return a.instruction_ids == b.instruction_ids &&
         a.first_target == b.first_target &&
         std::equal(a.ids.begin(), a.ids.begin() + a.first_target,
                    b.ids.begin());
}

// The prompt of `a` with the answer of `b`, cut to the model's positions.
Sequence Mismatch(const Sequence& a, const Sequence& b, int64_t max_positions) {
  Sequence sequence = a;
  sequence.ids.resize(static_cast<size_t>(a.first_target));
  const int64_t room = max_positions - a.first_target;
  const int64_t take = std::clamp<int64_t>(room, 0, b.targets());
  const auto begin = b.ids.begin() + b.first_target;
  sequence.ids.insert(sequence.ids.end(), begin, begin + take);
  return sequence;
}

// Pairs each example with the answer of the next one that has another prompt,
// cyclically: a function of the data alone, so that the reference's log-probs
// are computed once.
void AddMismatches(int64_t max_positions, std::vector<KtoExample>* examples) {
  const size_t count = examples->size();
  for (size_t i = 0; i < count; ++i) {
    KtoExample& example = (*examples)[i];
    for (size_t step = 1; step < count; ++step) {
      const KtoExample& other = (*examples)[(i + step) % count];
      if (!SamePrompt(example.sequence, other.sequence)) {
        example.mismatch =
            Mismatch(example.sequence, other.sequence, max_positions);
        break;
      }
    }
  }
}

absl::Status FillReference(const PreferenceParts& parts, const Shards& shards,
                           int64_t forward_rows,
                           std::vector<KtoExample>* examples) {
  std::vector<const Sequence*> rows;
  for (const KtoExample& example : *examples) {
    rows.push_back(&example.sequence);
  }
  for (const KtoExample& example : *examples) {
    if (example.mismatch.targets() > 0) {
      rows.push_back(&example.mismatch);
    }
  }
  COX_ASSIGN_OR_RETURN(
      const std::vector<std::vector<float>> logprobs,
      TargetLogprobs(rows, forward_rows, *parts.reference, shards));
  COX_RETURN_IF_ERROR(CheckReference(logprobs));
  size_t next = 0;
  for (KtoExample& example : *examples) {
    example.reference = SumLogprobs(logprobs[next++]);
  }
  for (KtoExample& example : *examples) {
    if (example.mismatch.targets() > 0) {
      example.mismatch_reference = SumLogprobs(logprobs[next++]);
    }
  }
  return absl::OkStatus();
}

// Over a batch, or a shard of it.
struct KtoSums {
  double loss = 0;
  double correct = 0;
  double reward[2] = {0, 0};  // of undesirable and desirable answers
  double count[2] = {0, 0};
  void Add(const KtoSums& other) {
    loss += other.loss;
    correct += other.correct;
    for (int k = 0; k < 2; ++k) {
      reward[k] += other.reward[k];
      count[k] += other.count[k];
    }
  }
};

class KtoObjective final : public PreferenceObjective {
 public:
  // Examples of row r: [begin[r], begin[r + 1]).
  KtoObjective(const KtoOptions& options, std::vector<KtoExample> examples,
               std::vector<size_t> begin)
      : options_(options),
        examples_(std::move(examples)),
        begin_(std::move(begin)) {}

  std::string_view name() const override { return "kto"; }
  int64_t rows() const override {
    return static_cast<int64_t>(begin_.size()) - 1;
  }

  void HashRow(int64_t row, Sha256* hash) const override {
    for (const KtoExample* example : Of(row)) {
      HashSequence(example->sequence, hash);
      hash->Update(
          std::as_bytes(std::span<const uint8_t>(&example->desirable, 1)));
    }
  }

  int64_t Tokens(int64_t row) const override {
    int64_t tokens = 0;
    for (const KtoExample* example : Of(row)) {
      tokens += example->sequence.targets();
    }
    return tokens;
  }

  absl::Status Backward(std::span<const int64_t> batch,
                        const PreferenceRun& run,
                        std::map<std::string, double>* metrics) override {
    double total = 0;
    for (const int64_t row : batch) {
      total += static_cast<double>(Of(row).size());
    }
    COX_ASSIGN_OR_RETURN(const double z0, ReferencePoint(batch, run));
    std::vector<KtoSums> own(static_cast<size_t>(run.shards.own()));
    COX_RETURN_IF_ERROR(
        run.shards.Backward(run.policy, [&](int64_t shard, size_t i) {
          return ShardBackward(batch, shard, z0, total, run, &own[i]);
        }));
    COX_ASSIGN_OR_RETURN(const std::vector<KtoSums> all,
                         run.shards.Gather(own));
    KtoSums sums;
    for (const KtoSums& part : all) {
      sums.Add(part);
    }
    (*metrics)["loss/kto"] = sums.loss;
    (*metrics)["kto/z0"] = z0;
    if (total > 0) {
      (*metrics)["kto/accuracy"] = sums.correct / total;
    }
    if (sums.count[0] > 0) {
      (*metrics)["kto/reward_undesirable"] = sums.reward[0] / sums.count[0];
    }
    if (sums.count[1] > 0) {
      (*metrics)["kto/reward_desirable"] = sums.reward[1] / sums.count[1];
    }
    if (sums.count[0] > 0 && sums.count[1] > 0) {
      (*metrics)["kto/margin"] =
          sums.reward[1] / sums.count[1] - sums.reward[0] / sums.count[0];
    }
    return absl::OkStatus();
  }

  absl::Status Measure(const PreferenceRun&,
                       std::map<std::string, double>*) override {
    return absl::OkStatus();
  }

 private:
  std::vector<const KtoExample*> Of(int64_t row) const {
    std::vector<const KtoExample*> examples;
    for (size_t i = begin_[static_cast<size_t>(row)];
         i < begin_[static_cast<size_t>(row) + 1]; ++i) {
      examples.push_back(&examples_[i]);
    }
    return examples;
  }

  // z0 of the batch under the current weights, the same on all ranks.
  absl::StatusOr<double> ReferencePoint(std::span<const int64_t> batch,
                                        const PreferenceRun& run) const {
    std::vector<const Sequence*> rows;
    std::vector<double> reference;
    for (const int64_t row : batch) {
      for (const KtoExample* example : Of(row)) {
        if (example->mismatch.targets() > 0) {
          rows.push_back(&example->mismatch);
          reference.push_back(example->mismatch_reference);
        }
      }
    }
    COX_ASSIGN_OR_RETURN(
        const std::vector<std::vector<float>> logprobs,
        TargetLogprobs(rows, run.forward_rows, run.policy, run.shards));
    std::vector<double> policy;
    for (const std::vector<float>& row : logprobs) {
      policy.push_back(SumLogprobs(row));
      // The backward pass meets the same weights and skips the step there.
      if (!std::isfinite(policy.back())) return 0.0;
    }
    return KtoReferencePoint<double>(policy, reference);
  }

  absl::Status ShardBackward(std::span<const int64_t> batch, int64_t shard,
                             double z0, double total, const PreferenceRun& run,
                             KtoSums* sums) const {
    COX_ASSIGN_OR_RETURN(
        const bool finite,
        BackwardShard(batch, shard, run, [&](std::span<const int64_t> rows) {
          std::vector<const KtoExample*> examples;
          PreferenceMicroBatch part;
          for (const int64_t row : rows) {
            for (const KtoExample* example : Of(row)) {
              examples.push_back(example);
              part.sequences.push_back(&example->sequence);
            }
          }
          part.loss = [this, examples = std::move(examples), z0, total, sums](
                          const TokenBatch& tokens,
                          std::span<const float> logprobs,
                          std::vector<float>* gradient) {
            return PartLoss(examples, tokens, logprobs, z0, total, gradient,
                            sums);
          };
          return part;
        }));
    if (!finite) {
      sums->loss = std::numeric_limits<double>::quiet_NaN();
    }
    return absl::OkStatus();
  }

  absl::Status PartLoss(const std::vector<const KtoExample*>& examples,
                        const TokenBatch& tokens, std::span<const float> output,
                        double z0, double total, std::vector<float>* gradient,
                        KtoSums* sums) const {
    std::vector<double> policy;
    std::vector<double> reference;
    std::vector<uint8_t> desirable;
    for (size_t b = 0; b < examples.size(); ++b) {
      const Sequence& sequence = examples[b]->sequence;
      double sum = 0;
      for (int64_t t = 0; t < sequence.targets(); ++t) {
        sum += double{
            output[TargetIndex(tokens, sequence, static_cast<int64_t>(b), t)]};
      }
      policy.push_back(sum);
      reference.push_back(examples[b]->reference);
      desirable.push_back(examples[b]->desirable);
    }
    COX_ASSIGN_OR_RETURN(
        const KtoResult<double> loss,
        KtoLoss<double>({policy, reference, desirable}, z0, options_, total));
    sums->loss += loss.loss;
    for (size_t b = 0; b < examples.size(); ++b) {
      const Sequence& sequence = examples[b]->sequence;
      for (int64_t t = 0; t < sequence.targets(); ++t) {
        (*gradient)[TargetIndex(tokens, sequence, static_cast<int64_t>(b), t)] =
            static_cast<float>(loss.grad[b]);
      }
      const double delta = policy[b] - reference[b];
      const size_t good = desirable[b] != 0 ? 1 : 0;
      sums->reward[good] += options_.beta * delta;
      sums->count[good] += 1;
      sums->correct += (good != 0 ? delta > z0 : delta < z0) ? 1 : 0;
    }
    return absl::OkStatus();
  }

  const KtoOptions options_;
  const std::vector<KtoExample> examples_;
  const std::vector<size_t> begin_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StageTrainer>> MakeKtoTrainer(
    const PreferenceTrainOptions& options, const KtoOptions& loss,
    const PreferenceParts& parts, const std::vector<LabelledRow>& data) {
  COX_ASSIGN_OR_RETURN(Shards shards, CheckPreference(options, parts));
  COX_RETURN_IF_ERROR(CheckPositive("kto.beta", loss.beta));
  std::vector<KtoExample> examples;
  std::vector<size_t> begin = {0};
  for (const LabelledRow& row : data) {
    for (size_t k = 0; k < row.completions.size(); ++k) {
      if (row.completions[k].targets() == 0) continue;
      KtoExample& example = examples.emplace_back();
      example.sequence = row.completions[k];
      example.desirable = row.desirable[k];
    }
    begin.push_back(examples.size());
  }
  if (examples.empty()) {
    return absl::InvalidArgumentError("kto: no labelled answer to train on");
  }
  AddMismatches(parts.policy->config().max_positions, &examples);
  const int64_t forward_rows =
      options.micro_batch > 0 ? options.micro_batch : options.batch;
  COX_RETURN_IF_ERROR(FillReference(parts, shards, forward_rows, &examples));
  return MakePreferenceTrainer(
      options, parts, std::move(shards),
      std::make_unique<KtoObjective>(loss, std::move(examples),
                                     std::move(begin)));
}

}  // namespace cox
