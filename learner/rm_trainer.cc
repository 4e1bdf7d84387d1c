#include "learner/rm_trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/data/cursor.h"
#include "lib/engine/model_config.h"

namespace cox {
namespace {

// Completions of several prompts, one after the other.
struct FlatComparisons {
  std::vector<const Sequence*> rows;
  std::vector<int64_t> ranks;
  std::vector<int64_t> sizes;

  void Add(const Comparison& comparison) {
    for (const Sequence& completion : comparison.completions) {
      rows.push_back(&completion);
    }
    ranks.insert(ranks.end(), comparison.ranks.begin(),
                 comparison.ranks.end());
    sizes.push_back(static_cast<int64_t>(comparison.ranks.size()));
  }
};

class RmTrainer final : public StageTrainer {
 public:
  RmTrainer(RmOptions options, TrainEngine& reward, Collective& group,
            RmData data, FlatOptimizer optimizer)
      : options_(std::move(options)),
        reward_(reward),
        group_(group),
        data_(std::move(data)),
        cursor_(static_cast<int64_t>(data_.train.size()), options_.seed,
                absl::StrCat("rm/", options_.stage)),
        optimizer_(std::move(optimizer)) {}

  absl::StatusOr<StepResult> Step(int64_t step, const BatchInput&) override {
    if (step != step_ + 1) {
      return absl::FailedPreconditionError(absl::StrCat(
          "rm trainer: expected step ", step_ + 1, ", found ", step));
    }
    StepResult result;
    const std::vector<const Comparison*> batch = Batch(step, &result);
    reward_.ZeroGradients();
    // loss, correct, margin, pairs; scores, their sum and sum of squares
    double sums[7] = {0, 0, 0, 0, 0, 0, 0};
    COX_RETURN_IF_ERROR(Backward(batch, sums));
    snapshot_ = nullptr;
    COX_ASSIGN_OR_RETURN(const FlatOptimizer::Update update,
                         optimizer_.Apply(step - 1, reward_, group_));
    COX_RETURN_IF_ERROR(group_.AllReduceSum(std::span<double>(sums)));
    step_ = step;
    result.skipped = update.skipped;
    result.metrics["loss/rm"] = sums[0];
    result.metrics["lr"] = update.lr;
    result.metrics["grad_norm/rm"] = update.grad_norm;
    if (sums[3] > 0) {
      result.metrics["rm/accuracy"] = sums[1] / sums[3];
      result.metrics["rm/margin"] = sums[2] / sums[3];
      const double mean = sums[5] / sums[4];
      result.metrics["rm/mean"] = mean;
      result.metrics["rm/std"] =
          std::sqrt(std::max(0.0, sums[6] / sums[4] - mean * mean));
    }
    if (step == options_.total_steps) {
      COX_RETURN_IF_ERROR(Finish(&result.metrics));
    }
    return result;
  }

  absl::StatusOr<std::shared_ptr<const Snapshot>> Trained() override {
    if (snapshot_ == nullptr) {
      COX_ASSIGN_OR_RETURN(ModelConfig config,
                           ModelConfig::FromJson(reward_.layout().config_json));
      config.reward_gain = normalizer_.gain;
      config.reward_bias = normalizer_.bias;
      Manifest layout = reward_.layout();
      layout.config_json = config.ToJson();
      COX_ASSIGN_OR_RETURN(snapshot_,
                           SnapshotFromFloats(layout, reward_.Parameters()));
    }
    return snapshot_;
  }

  absl::StatusOr<std::vector<StageModel>> Models() override {
    COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> trained, Trained());
    return std::vector<StageModel>{{"reward", std::move(trained)}};
  }

  std::string SaveState() const override {
    StateWriter writer;
    writer.PutInt("step", step_);
    writer.PutDouble("reward/gain", normalizer_.gain);
    writer.PutDouble("reward/bias", normalizer_.bias);
    optimizer_.Save("reward", &writer);
    return writer.Finish();
  }

  absl::Status LoadState(std::string_view state) override {
    COX_ASSIGN_OR_RETURN(const StateReader reader, StateReader::Parse(state));
    COX_ASSIGN_OR_RETURN(step_, reader.Int("step"));
    COX_ASSIGN_OR_RETURN(normalizer_.gain, reader.Double("reward/gain"));
    COX_ASSIGN_OR_RETURN(normalizer_.bias, reader.Double("reward/bias"));
    snapshot_ = nullptr;
    return optimizer_.Load("reward", reader);
  }

  int64_t completed_steps() const override { return step_; }

 private:
  std::vector<const Comparison*> Batch(int64_t step, StepResult* result) {
    std::vector<const Comparison*> batch;
    Sha256 hash;
    const int64_t size = cursor_.size();
    const int64_t steps_per_pass =
        (size + options_.batch - 1) / options_.batch;
    const int64_t pass = (step - 1) / steps_per_pass;
    const int64_t first = (step - 1) % steps_per_pass * options_.batch;
    for (int64_t j = first; j < std::min(first + options_.batch, size); ++j) {
      const Comparison& comparison =
          data_.train[static_cast<size_t>(cursor_.At(pass * size + j))];
      batch.push_back(&comparison);
      for (const Sequence& completion : comparison.completions) {
        HashSequence(completion, &hash);
      }
      hash.Update(
          std::as_bytes(std::span<const int64_t>(comparison.ranks)));
    }
    result->batch_sha256 = hash.HexDigest();
    return batch;
  }

  absl::Status Backward(const std::vector<const Comparison*>& batch,
                        std::span<double, 7> sums) {
    FlatComparisons all;
    for (const Comparison* comparison : batch) {
      all.Add(*comparison);
    }
    const double total =
        static_cast<double>(CountRankedPrompts(all.ranks, all.sizes));
    bool finite = true;
    const auto backward = [&](std::span<const int64_t> part) -> absl::Status {
      FlatComparisons flat;
      for (const int64_t j : part) {
        flat.Add(*batch[static_cast<size_t>(j)]);
      }
      return reward_.AccumulateScores(
          MakeTokenBatch(flat.rows),
          [&](std::span<const float> scores,
              std::span<float> gradient) -> absl::Status {
            std::fill(gradient.begin(), gradient.end(), 0.0f);
            if (AnyNonFinite(scores)) {
              finite = false;
              return absl::OkStatus();
            }
            COX_ASSIGN_OR_RETURN(
                const RmLossResult<float> loss,
                RmPairwiseLoss<float>(scores, flat.ranks, flat.sizes,
                                      options_.loss, total));
            std::copy(loss.grad.begin(), loss.grad.end(), gradient.begin());
            sums[0] += loss.loss;
            sums[1] += static_cast<double>(loss.correct);
            sums[2] += loss.margin_sum;
            sums[3] += static_cast<double>(loss.pairs);
            for (const float score : scores) {
              sums[4] += 1;
              sums[5] += double{score};
              sums[6] += double{score} * double{score};
            }
            return absl::OkStatus();
          });
    };
    COX_RETURN_IF_ERROR(ForMicroBatches(
        ElementsOfRank(static_cast<int64_t>(batch.size()), group_),
        options_.micro_batch, backward));
    if (!finite) {
      PoisonGradient(reward_);
      sums[0] = std::numeric_limits<double>::quiet_NaN();
    }
    return absl::OkStatus();
  }

  // Accuracy and mean margin over all pairs of `comparisons`, all ranks.
  absl::Status Measure(const std::vector<Comparison>& comparisons,
                       const std::string& name,
                       std::map<std::string, double>* metrics) {
    if (comparisons.empty()) {
      return absl::OkStatus();
    }
    double sums[3] = {0, 0, 0};  // correct, margin, pairs
    const auto forward = [&](std::span<const int64_t> part) -> absl::Status {
      FlatComparisons flat;
      for (const int64_t j : part) {
        flat.Add(comparisons[static_cast<size_t>(j)]);
      }
      COX_ASSIGN_OR_RETURN(const std::vector<float> scores,
                           reward_.Scores(MakeTokenBatch(flat.rows)));
      COX_ASSIGN_OR_RETURN(const RmLossResult<float> loss,
                           RmPairwiseLoss<float>(scores, flat.ranks,
                                                 flat.sizes, options_.loss));
      sums[0] += static_cast<double>(loss.correct);
      sums[1] += loss.margin_sum;
      sums[2] += static_cast<double>(loss.pairs);
      return absl::OkStatus();
    };
    COX_RETURN_IF_ERROR(ForMicroBatches(
        ElementsOfRank(static_cast<int64_t>(comparisons.size()), group_),
        ForwardRows(), forward));
    COX_RETURN_IF_ERROR(group_.AllReduceSum(std::span<double>(sums)));
    if (sums[2] > 0) {
      (*metrics)[absl::StrCat("rm/", name, "_accuracy")] = sums[0] / sums[2];
      (*metrics)[absl::StrCat("rm/", name, "_margin")] = sums[1] / sums[2];
    }
    return absl::OkStatus();
  }

  // Held-out accuracy, then the normalisation: demonstrations get mean 0.
  absl::Status Finish(std::map<std::string, double>* metrics) {
    COX_RETURN_IF_ERROR(Measure(data_.heldout, "heldout", metrics));
    COX_RETURN_IF_ERROR(Measure(data_.human, "human", metrics));
    if (!options_.normalize.has_value() || data_.demonstrations.empty()) {
      return absl::OkStatus();
    }
    const int64_t count = static_cast<int64_t>(data_.demonstrations.size());
    const std::vector<int64_t> mine = ElementsOfRank(count, group_);
    std::vector<double> local;
    const auto forward = [&](std::span<const int64_t> part) -> absl::Status {
      std::vector<const Sequence*> rows;
      for (const int64_t j : part) {
        rows.push_back(&data_.demonstrations[static_cast<size_t>(j)]);
      }
      COX_ASSIGN_OR_RETURN(const std::vector<float> scores,
                           reward_.Scores(MakeTokenBatch(rows)));
      local.insert(local.end(), scores.begin(), scores.end());
      return absl::OkStatus();
    };
    COX_RETURN_IF_ERROR(ForMicroBatches(mine, ForwardRows(), forward));
    CollectiveReducer reducer(group_);
    COX_ASSIGN_OR_RETURN(const std::vector<double> scores,
                         GatherRows(local, mine, count, reducer));
    COX_ASSIGN_OR_RETURN(normalizer_,
                         FitRewardNormalizer(scores, *options_.normalize));
    (*metrics)["rm/reward_gain"] = normalizer_.gain;
    (*metrics)["rm/reward_bias"] = normalizer_.bias;
    return absl::OkStatus();
  }

  // Bounds the memory of passes over whole data sets.
  int64_t ForwardRows() const {
    return options_.micro_batch > 0 ? options_.micro_batch : options_.batch;
  }

  const RmOptions options_;
  TrainEngine& reward_;
  Collective& group_;
  const RmData data_;
  const ShuffledCursor cursor_;
  FlatOptimizer optimizer_;
  RewardNormalizer normalizer_;
  int64_t step_ = 0;
  std::shared_ptr<const Snapshot> snapshot_;  // of step_; null = not hashed yet
};

}  // namespace

absl::StatusOr<std::unique_ptr<StageTrainer>> MakeRmTrainer(
    const RmOptions& options, TrainEngine& reward, Collective& group,
    RmData data) {
  if (options.batch < 1 || options.micro_batch < 0 ||
      options.total_steps < 1) {
    return absl::InvalidArgumentError(
        "rm options: batch and total_steps must be at least 1, micro_batch "
        "not negative");
  }
  if (data.train.empty()) {
    return absl::InvalidArgumentError("rm: no comparisons to train on");
  }
  COX_ASSIGN_OR_RETURN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(options.optimizer, reward.layout()));
  return std::make_unique<RmTrainer>(options, reward, group, std::move(data),
                                     std::move(optimizer));
}

}  // namespace cox
