#include "learner/preference_trainer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/lm_trainer.h"
#include "learner/preference_objective.h"
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
        policy_(*parts.policy),
        text_(parts.text),
        shards_(std::move(shards)),
        objective_(std::move(objective)),
        cursor_(objective_->rows(), options_.seed,
                absl::StrCat(std::string(objective_->name()), "/",
                             options_.stage)),
        optimizer_(std::move(optimizer)) {}

  absl::StatusOr<StepResult> Step(int64_t step, const BatchInput&) override {
    if (step != step_ + 1) {
      return absl::FailedPreconditionError(
          absl::StrCat(std::string(objective_->name()),
                       " trainer: expected step ", step_ + 1, ", found ",
                       step));
    }
    StepResult result;
    if (step == 1) {
      COX_RETURN_IF_ERROR(Measure(&result.metrics));
    }
    const std::vector<int64_t> batch = Batch(step, &result);
    COX_RETURN_IF_ERROR(objective_->Backward(batch, Run(), &result.metrics));
    snapshot_ = nullptr;
    COX_ASSIGN_OR_RETURN(const FlatOptimizer::Update update,
                         optimizer_.Apply(step - 1, policy_, shards_.group()));
    step_ = step;
    result.skipped = update.skipped;
    result.metrics["lr"] = update.lr;
    result.metrics["grad_norm/policy"] = update.grad_norm;
    if (step == options_.total_steps) {
      COX_RETURN_IF_ERROR(Measure(&result.metrics));
    }
    return result;
  }

  absl::StatusOr<std::shared_ptr<const Snapshot>> Trained() override {
    if (snapshot_ == nullptr) {
      COX_ASSIGN_OR_RETURN(
          snapshot_,
          SnapshotFromFloats(policy_.layout(), policy_.Parameters()));
    }
    return snapshot_;
  }

  absl::StatusOr<std::vector<StageModel>> Models() override {
    COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> trained, Trained());
    return std::vector<StageModel>{{"policy", std::move(trained)}};
  }

  std::string SaveState() const override {
    StateWriter writer;
    writer.PutInt("step", step_);
    optimizer_.Save("policy", &writer);
    return writer.Finish();
  }

  absl::Status LoadState(std::string_view state) override {
    COX_ASSIGN_OR_RETURN(const StateReader reader, StateReader::Parse(state));
    COX_ASSIGN_OR_RETURN(step_, reader.Int("step"));
    snapshot_ = nullptr;
    return optimizer_.Load("policy", reader);
  }

  int64_t completed_steps() const override { return step_; }

 private:
  int64_t ForwardRows() const {
    return options_.micro_batch > 0 ? options_.micro_batch : options_.batch;
  }
  PreferenceRun Run() {
    return {policy_, shards_, options_.micro_batch, ForwardRows()};
  }

  absl::Status Measure(std::map<std::string, double>* metrics) {
    COX_RETURN_IF_ERROR(objective_->Measure(Run(), metrics));
    return MeasureHeldout(text_, ForwardRows(), policy_, shards_, metrics);
  }

  // Whole passes, each in its own order; the last step of one may be short.
  std::vector<int64_t> Batch(int64_t step, StepResult* result) const {
    const int64_t size = cursor_.size();
    const int64_t steps_per_pass =
        (size + options_.batch - 1) / options_.batch;
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
  TrainEngine& policy_;
  const std::vector<Sequence> text_;
  Shards shards_;
  const std::unique_ptr<PreferenceObjective> objective_;
  const ShuffledCursor cursor_;
  FlatOptimizer optimizer_;
  int64_t step_ = 0;
  std::shared_ptr<const Snapshot> snapshot_;  // of step_; null = not hashed yet
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

absl::StatusOr<Shards> CheckPreference(const PreferenceTrainOptions& options,
                                       const PreferenceParts& parts) {
  if (options.batch < 1 || options.micro_batch < 0 ||
      options.total_steps < 1) {
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
