#include "learner/preference_trainer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/lm_trainer.h"
#include "learner/preference_objective.h"
#include "learner/trained_model.h"
#include "lib/data/cursor.h"

namespace cox {
namespace {

class PreferenceTrainer final : public StageTrainer {
 public:
  PreferenceTrainer(PreferenceTrainOptions options,
                    const PreferenceParts& parts, Shards shards,
                    std::unique_ptr<PreferenceObjective> objective,
                    FlatOptimizer optimizer)
      : options_(std::move(options)),
        policy_("policy", *parts.policy, std::move(optimizer)),
        text_(parts.text),
        shards_(std::move(shards)),
        objective_(std::move(objective)),
        cursor_(objective_->rows(), options_.seed,
                absl::StrCat(std::string(objective_->name()), "/",
                             options_.stage)) {}

  absl::StatusOr<StepResult> Step(int64_t step, const BatchInput&) override {
    COX_RETURN_IF_ERROR(policy_.CheckNext(objective_->name(), step));
    StepResult result;
    if (step == 1) {
      COX_RETURN_IF_ERROR(Measure(&result.metrics));
    }
    const std::vector<int64_t> batch = Batch(step, &result);
    COX_RETURN_IF_ERROR(objective_->Backward(batch, Run(), &result.metrics));
    COX_RETURN_IF_ERROR(policy_.Update(step, "grad_norm/policy", &result));
    if (step == options_.total_steps) {
      COX_RETURN_IF_ERROR(Measure(&result.metrics));
    }
    return result;
  }

  absl::StatusOr<std::shared_ptr<const Snapshot>> Trained() override {
    return policy_.Trained();
  }

  absl::StatusOr<std::vector<StageModel>> Models() override {
    COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> trained, Trained());
    return std::vector<StageModel>{{"policy", std::move(trained)}};
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
  int64_t ForwardRows() const {
    return options_.micro_batch > 0 ? options_.micro_batch : options_.batch;
  }
  PreferenceRun Run() {
    return {policy_.engine(), shards_, options_.micro_batch, ForwardRows()};
  }

  absl::Status Measure(std::map<std::string, double>* metrics) {
    COX_RETURN_IF_ERROR(objective_->Measure(Run(), metrics));
    return MeasureHeldout(text_, ForwardRows(), policy_.engine(), shards_,
                          metrics);
  }

  // Whole passes, each in its own order; the last step of one may be short.
  std::vector<int64_t> Batch(int64_t step, StepResult* result) const {
    const int64_t size = cursor_.size();
    const int64_t steps_per_pass = (size + options_.batch - 1) / options_.batch;
    const int64_t pass = (step - 1) / steps_per_pass;
    const int64_t first = (step - 1) % steps_per_pass * options_.batch;
    std::vector<int64_t> batch;
    Sha256 hash;
    double tokens = 0;
    for (int64_t j = first; j < std::min(first + options_.batch, size); ++j) {
      batch.push_back(cursor_.At(pass * size + j));
      objective_->HashRow(batch.back(), &hash);
      tokens += static_cast<double>(objective_->Tokens(batch.back()));
    }
    result->batch_sha256 = hash.HexDigest();
    result->metrics["text/tokens"] = tokens;
    return batch;
  }

  const PreferenceTrainOptions options_;
  TrainedModel policy_;
  const std::vector<Sequence> text_;
  Shards shards_;
  const std::unique_ptr<PreferenceObjective> objective_;
  const ShuffledCursor cursor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StageTrainer>> MakePreferenceTrainer(
    const PreferenceTrainOptions& options, const PreferenceParts& parts,
    Shards shards, std::unique_ptr<PreferenceObjective> objective) {
  COX_ASSIGN_OR_RETURN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(options.optimizer, parts.policy->layout()));
  return std::make_unique<PreferenceTrainer>(options, parts, std::move(shards),
                                             std::move(objective),
                                             std::move(optimizer));
}

absl::StatusOr<bool> BackwardShard(
    std::span<const int64_t> batch, int64_t shard, const PreferenceRun& run,
    const std::function<PreferenceMicroBatch(std::span<const int64_t>)>& make) {
  std::vector<int64_t> rows;
  for (const int64_t place :
       run.shards.Elements(static_cast<int64_t>(batch.size()), shard)) {
    rows.push_back(batch[static_cast<size_t>(place)]);
  }
  bool finite = true;
  const auto backward = [&](std::span<const int64_t> micro) -> absl::Status {
    const PreferenceMicroBatch part = make(micro);
    if (part.sequences.empty()) return absl::OkStatus();
    const TokenBatch tokens = MakeTokenBatch(part.sequences);
    return run.policy.AccumulateLogprobs(
        tokens, /*temperature=*/1.0, /*want_entropy=*/false,
        [&](const LogprobOutput& output, LogprobGradient* gradient) {
          gradient->logprobs.assign(output.logprobs.size(), 0.0f);
          if (AnyNonFinite(output.logprobs)) {
            finite = false;
            return absl::OkStatus();
          }
          return part.loss(tokens, output.logprobs, &gradient->logprobs);
        });
  };
  COX_RETURN_IF_ERROR(
      BackwardMicroBatches(run.policy, rows, run.micro_batch, backward));
  if (!finite) {
    COX_RETURN_IF_ERROR(PoisonGradient(run.policy));
  }
  return finite;
}

absl::StatusOr<Shards> CheckPreference(const PreferenceTrainOptions& options,
                                       const PreferenceParts& parts) {
  if (options.batch < 1 || options.micro_batch < 0 || options.total_steps < 1) {
    return absl::InvalidArgumentError(
        "preference options: batch and total_steps must be at least 1, "
        "micro_batch not negative");
  }
  if (parts.policy == nullptr || parts.reference == nullptr ||
      parts.group == nullptr) {
    return absl::InvalidArgumentError(
        "preference trainer: expected a policy, a reference and a group");
  }
  return Shards::Create(options.shards, *parts.group);
}

absl::Status CheckReference(const std::vector<std::vector<float>>& logprobs) {
  for (size_t row = 0; row < logprobs.size(); ++row) {
    if (AnyNonFinite(logprobs[row])) {
      return absl::InvalidArgumentError(absl::StrCat(
          "reference: log-probs of answer ", row, " are not finite"));
    }
  }
  return absl::OkStatus();
}

}  // namespace cox
