#include "learner/lm_trainer.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "learner/trained_model.h"
#include "lib/algo/lm_loss.h"

namespace cox {
namespace {

class PackedSource final : public LmSource {
 public:
  PackedSource(PackedTokens tokens, std::optional<int32_t> start)
      : tokens_(std::move(tokens)), start_(start) {}
  Sequence At(int64_t position) const override {
    Sequence sequence;
    sequence.ids = tokens_.Block(position);
    if (start_.has_value()) {
      sequence.instruction_ids = {*start_};
    }
    return sequence;
  }

 private:
  PackedTokens tokens_;
  std::optional<int32_t> start_;
};

class ExampleSource final : public LmSource {
 public:
  ExampleSource(std::vector<Sequence> examples, uint64_t seed,
                std::string stream)
      : examples_(std::move(examples)),
        cursor_(static_cast<int64_t>(examples_.size()), seed,
                std::move(stream)) {}
  Sequence At(int64_t position) const override {
    return examples_[static_cast<size_t>(cursor_.At(position))];
  }

 private:
  std::vector<Sequence> examples_;
  ShuffledCursor cursor_;
};

std::vector<const Sequence*> Pick(const std::vector<Sequence>& sequences,
                                  std::span<const int64_t> rows) {
  std::vector<const Sequence*> picked;
  for (const int64_t row : rows) {
    picked.push_back(&sequences[static_cast<size_t>(row)]);
  }
  return picked;
}

double CountTargets(const std::vector<Sequence>& sequences) {
  double targets = 0;
  for (const Sequence& sequence : sequences) {
    targets += static_cast<double>(sequence.targets());
  }
  return targets;
}

// Σ −log p / total over the rows of one shard, with backward.
absl::StatusOr<double> NllBackward(const std::vector<Sequence>& sequences,
                                   const NllBackwardOptions& options,
                                   std::span<const int64_t> shard_rows,
                                   TrainEngine& policy) {
  const double total = CountTargets(sequences);
  double loss = 0;
  bool finite = true;
  const auto backward = [&](std::span<const int64_t> rows) -> absl::Status {
    TokenBatch batch = MakeTokenBatch(Pick(sequences, rows));
    AddDropout(options.dropout, options.step, rows, &batch);
    return policy.AccumulateLogprobs(
        batch, /*temperature=*/1.0, /*want_entropy=*/false,
        [&](const LogprobOutput& output,
            LogprobGradient* gradient) -> absl::Status {
          gradient->logprobs.assign(output.logprobs.size(), 0.0f);
          if (AnyNonFinite(output.logprobs)) {
            finite = false;
            return absl::OkStatus();
          }
          COX_ASSIGN_OR_RETURN(
              NllLossResult<float> nll,
              NllLoss<float>({batch.batch, batch.length}, output.logprobs,
                             batch.scored, total));
          loss += nll.loss;
          for (size_t i = 0; i < nll.grad.size(); ++i) {
            gradient->logprobs[i] =
                static_cast<float>(options.coef * double{nll.grad[i]});
          }
          return absl::OkStatus();
        });
  };
  COX_RETURN_IF_ERROR(
      BackwardMicroBatches(policy, shard_rows, options.micro_batch, backward));
  if (!finite) {
    COX_RETURN_IF_ERROR(PoisonGradient(policy));
    return std::numeric_limits<double>::quiet_NaN();
  }
  return loss;
}

class LmTrainer final : public StageTrainer {
 public:
  LmTrainer(LmOptions options, TrainedModel policy, Shards shards,
            const LmSource& source, std::vector<Sequence> heldout)
      : options_(std::move(options)),
        policy_(std::move(policy)),
        shards_(std::move(shards)),
        source_(source),
        heldout_(std::move(heldout)) {}

  absl::StatusOr<StepResult> Step(int64_t step, const BatchInput&) override {
    COX_RETURN_IF_ERROR(policy_.CheckNext("lm", step));
    StepResult result;
    if (step == 1) {
      COX_RETURN_IF_ERROR(Measure(&result.metrics));
    }
    std::vector<Sequence> batch;
    Sha256 hash;
    for (int64_t j = 0; j < options_.batch; ++j) {
      batch.push_back(source_.At((step - 1) * options_.batch + j));
      HashSequence(batch.back(), &hash);
    }
    result.batch_sha256 = hash.HexDigest();
    COX_ASSIGN_OR_RETURN(const double loss, Backward(step, batch));
    COX_RETURN_IF_ERROR(policy_.Update(step, "grad_norm/lm", &result));
    result.metrics["loss/lm"] = loss;
    result.metrics["text/tokens"] = CountTargets(batch);
    const bool periodic =
        options_.heldout_every > 0 && step % options_.heldout_every == 0;
    if (periodic || step == options_.total_steps) {
      COX_RETURN_IF_ERROR(Measure(&result.metrics));
    }
    return result;
  }

  absl::StatusOr<std::shared_ptr<const Snapshot>> Trained() override {
    return policy_.Trained();
  }

  absl::StatusOr<std::vector<StageModel>> Models() override {
    COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> trained, Trained());
    return std::vector<StageModel>{{options_.model, std::move(trained)}};
  }

  std::string SaveState() const override {
    StateWriter writer;
    policy_.Save(&writer);
    return writer.Finish();
  }

  absl::Status LoadState(std::string_view state) override {
    COX_ASSIGN_OR_RETURN(const StateReader reader, StateReader::Parse(state));
    return policy_.Load(reader);
  }

  int64_t completed_steps() const override { return policy_.completed_steps(); }

 private:
  // Gradients of this rank's shards; returns the loss over all shards.
  absl::StatusOr<double> Backward(int64_t step,
                                  const std::vector<Sequence>& batch) {
    const NllBackwardOptions options = {.micro_batch = options_.micro_batch,
                                        .dropout = options_.dropout,
                                        .step = step};
    std::vector<double> own(static_cast<size_t>(shards_.own()));
    const int64_t size = static_cast<int64_t>(batch.size());
    COX_RETURN_IF_ERROR(shards_.Backward(
        policy_.engine(), [&](int64_t shard, size_t i) -> absl::Status {
          COX_ASSIGN_OR_RETURN(
              own[i], NllBackward(batch, options, shards_.Elements(size, shard),
                                  policy_.engine()));
          return absl::OkStatus();
        }));
    COX_ASSIGN_OR_RETURN(const std::vector<double> all, shards_.Gather(own));
    return std::accumulate(all.begin(), all.end(), 0.0);
  }

  absl::Status Measure(std::map<std::string, double>* metrics) {
    const int64_t micro =
        options_.micro_batch > 0 ? options_.micro_batch : options_.batch;
    return MeasureHeldout(heldout_, micro, policy_.engine(), shards_, metrics);
  }

  const LmOptions options_;
  TrainedModel policy_;
  Shards shards_;
  const LmSource& source_;
  const std::vector<Sequence> heldout_;
};

}  // namespace

std::unique_ptr<LmSource> MakePackedSource(PackedTokens tokens,
                                           std::optional<int32_t> start) {
  return std::make_unique<PackedSource>(std::move(tokens), start);
}

std::unique_ptr<LmSource> MakeExampleSource(std::vector<Sequence> examples,
                                            uint64_t seed, std::string stream) {
  COX_CHECK(!examples.empty());
  return std::make_unique<ExampleSource>(std::move(examples), seed,
                                         std::move(stream));
}

std::vector<Sequence> SftSequences(const std::vector<SftExample>& examples,
                                   bool prompt_loss) {
  std::vector<Sequence> sequences;
  for (const SftExample& example : examples) {
    Sequence sequence;
    sequence.ids = example.ids;
    sequence.instruction_ids = example.instruction_ids;
    // The first token has no context to be predicted from.
    sequence.first_target =
        prompt_loss ? 1 : std::max<int64_t>(1, example.prompt_length);
    if (!sequence.ids.empty()) {
      sequences.push_back(std::move(sequence));
    }
  }
  return sequences;
}

absl::StatusOr<std::unique_ptr<StageTrainer>> MakeLmTrainer(
    const LmOptions& options, TrainEngine& policy, Collective& group,
    const LmSource& source, std::vector<Sequence> heldout) {
  if (options.batch < 1 || options.micro_batch < 0 || options.total_steps < 1 ||
      options.heldout_every < 0) {
    return absl::InvalidArgumentError(
        "lm options: batch and total_steps must be at least 1, micro_batch "
        "and heldout_every not negative");
  }
  COX_ASSIGN_OR_RETURN(Shards shards, Shards::Create(options.shards, group));
  COX_ASSIGN_OR_RETURN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(options.optimizer, policy.layout()));
  return std::make_unique<LmTrainer>(
      options, TrainedModel("policy", policy, std::move(optimizer)),
      std::move(shards), source, std::move(heldout));
}

absl::StatusOr<double> AccumulateNll(const NllBackwardOptions& options,
                                     const Shards& shards, int64_t shard,
                                     const LmSource& source,
                                     TrainEngine& policy) {
  std::vector<Sequence> batch;
  for (int64_t j = 0; j < options.count; ++j) {
    batch.push_back(source.At(options.first_position + j));
  }
  return NllBackward(batch, options, shards.Elements(options.count, shard),
                     policy);
}

absl::Status MeasureHeldout(const std::vector<Sequence>& heldout,
                            int64_t micro_batch, TrainEngine& policy,
                            const Shards& shards,
                            std::map<std::string, double>* metrics) {
  if (heldout.empty()) {
    return absl::OkStatus();
  }
  struct Sums {
    double nll = 0;
    double targets = 0;
  };
  std::vector<Sums> own(static_cast<size_t>(shards.own()));
  COX_RETURN_IF_ERROR(shards.ForOwn([&](int64_t shard, size_t i) {
    const auto forward = [&](std::span<const int64_t> rows) -> absl::Status {
      const TokenBatch batch = MakeTokenBatch(Pick(heldout, rows));
      COX_ASSIGN_OR_RETURN(const LogprobOutput output,
                           policy.Logprobs(batch, /*temperature=*/1.0,
                                           /*want_entropy=*/false));
      for (size_t at = 0; at < batch.scored.size(); ++at) {
        if (batch.scored[at] != 0) {
          own[i].nll -= double{output.logprobs[at]};
          own[i].targets += 1;
        }
      }
      return absl::OkStatus();
    };
    return ForMicroBatches(
        shards.Elements(static_cast<int64_t>(heldout.size()), shard),
        micro_batch, forward);
  }));
  COX_ASSIGN_OR_RETURN(const std::vector<Sums> all, shards.Gather(own));
  Sums sums;
  for (const Sums& part : all) {
    sums.nll += part.nll;
    sums.targets += part.targets;
  }
  if (sums.targets > 0) {
    (*metrics)["text/heldout_nll"] = sums.nll / sums.targets;
    (*metrics)["text/heldout_ppl"] = std::exp(sums.nll / sums.targets);
  }
  return absl::OkStatus();
}

}  // namespace cox
