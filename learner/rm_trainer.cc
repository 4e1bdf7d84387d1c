#include "learner/rm_trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/trained_model.h"
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
    ranks.insert(ranks.end(), comparison.ranks.begin(), comparison.ranks.end());
    sizes.push_back(static_cast<int64_t>(comparison.ranks.size()));
  }
};

// Over a training batch, or a shard of it.
struct BatchSums {
  double loss = 0;
  double correct = 0;  // pairs
  double margin = 0;
  double pairs = 0;
  double scores = 0;  // their number, sum and sum of squares
  double score_sum = 0;
  double score_squares = 0;
  void Add(const BatchSums& other) {
    loss += other.loss;
    correct += other.correct;
    margin += other.margin;
    pairs += other.pairs;
    scores += other.scores;
    score_sum += other.score_sum;
    score_squares += other.score_squares;
  }
};

class RmTrainer final : public StageTrainer {
 public:
  RmTrainer(RmOptions options, TrainEngine& reward, Shards shards, RmData data,
            FlatOptimizer optimizer)
      : options_(std::move(options)),
        reward_(reward),
        model_("reward", reward, std::move(optimizer)),
        shards_(std::move(shards)),
        data_(std::move(data)),
        cursor_(static_cast<int64_t>(data_.train.size()), options_.seed,
                absl::StrCat("rm/", options_.stage)) {}

  absl::StatusOr<StepResult> Step(int64_t step, const BatchInput&) override {
    COX_RETURN_IF_ERROR(model_.CheckNext("rm", step));
    StepResult result;
    const std::vector<const Comparison*> batch = Batch(step, &result);
    COX_ASSIGN_OR_RETURN(const BatchSums sums, Backward(step, batch));
    COX_RETURN_IF_ERROR(model_.Update(step, "grad_norm/rm", &result));
    result.metrics["loss/rm"] = sums.loss;
    if (sums.pairs > 0) {
      result.metrics["rm/accuracy"] = sums.correct / sums.pairs;
      result.metrics["rm/margin"] = sums.margin / sums.pairs;
      const double mean = sums.score_sum / sums.scores;
      result.metrics["rm/mean"] = mean;
      result.metrics["rm/std"] = std::sqrt(
          std::max(0.0, sums.score_squares / sums.scores - mean * mean));
    }
    if (step == options_.total_steps) {
      COX_RETURN_IF_ERROR(Finish(&result.metrics));
    }
    return result;
  }

  absl::StatusOr<std::shared_ptr<const Snapshot>> Trained() override {
    Manifest layout = reward_.layout();
    COX_ASSIGN_OR_RETURN(ModelConfig config,
                         ModelConfig::FromJson(layout.config_json));
    config.reward_gain = normalizer_.gain;
    config.reward_bias = normalizer_.bias;
    layout.config_json = config.ToJson();
    return model_.Trained(layout);
  }

  absl::StatusOr<std::vector<StageModel>> Models() override {
    COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> trained, Trained());
    return std::vector<StageModel>{{"reward", std::move(trained)}};
  }

  std::string SaveState() const override {
    StateWriter writer;
    model_.Save(&writer);
    writer.PutDouble("reward/gain", normalizer_.gain);
    writer.PutDouble("reward/bias", normalizer_.bias);
    return writer.Finish();
  }

  absl::Status LoadState(std::string_view state) override {
    COX_ASSIGN_OR_RETURN(const StateReader reader, StateReader::Parse(state));
    COX_ASSIGN_OR_RETURN(normalizer_.gain, reader.Double("reward/gain"));
    COX_ASSIGN_OR_RETURN(normalizer_.bias, reader.Double("reward/bias"));
    return model_.Load(reader);
  }

  int64_t completed_steps() const override { return model_.completed_steps(); }

 private:
  std::vector<const Comparison*> Batch(int64_t step, StepResult* result) {
    std::vector<const Comparison*> batch;
    Sha256 hash;
    const int64_t size = cursor_.size();
    const int64_t steps_per_pass = (size + options_.batch - 1) / options_.batch;
    const int64_t pass = (step - 1) / steps_per_pass;
    const int64_t first = (step - 1) % steps_per_pass * options_.batch;
    for (int64_t j = first; j < std::min(first + options_.batch, size); ++j) {
      const Comparison& comparison =
          data_.train[static_cast<size_t>(cursor_.At(pass * size + j))];
      batch.push_back(&comparison);
      for (const Sequence& completion : comparison.completions) {
        HashSequence(completion, &hash);
      }
      hash.Update(std::as_bytes(std::span<const int64_t>(comparison.ranks)));
    }
    result->batch_sha256 = hash.HexDigest();
    return batch;
  }

  // Gradients of this rank's shards; returns the sums over all shards.
  absl::StatusOr<BatchSums> Backward(
      int64_t step, const std::vector<const Comparison*>& batch) {
    FlatComparisons flat;
    for (const Comparison* comparison : batch) {
      flat.Add(*comparison);
    }
    const double total =
        static_cast<double>(CountRankedPrompts(flat.ranks, flat.sizes));
    std::vector<BatchSums> own(static_cast<size_t>(shards_.own()));
    COX_RETURN_IF_ERROR(shards_.Backward(reward_, [&](int64_t shard, size_t i) {
      return ShardBackward(step, batch, shard, total, &own[i]);
    }));
    COX_ASSIGN_OR_RETURN(const std::vector<BatchSums> all, shards_.Gather(own));
    BatchSums sums;
    for (const BatchSums& part : all) {
      sums.Add(part);
    }
    return sums;
  }

  absl::Status ShardBackward(int64_t step,
                             const std::vector<const Comparison*>& batch,
                             int64_t shard, double total, BatchSums* sums) {
    // Place of each prompt's first completion among those of the step.
    std::vector<int64_t> first = {0};
    for (const Comparison* comparison : batch) {
      first.push_back(first.back() +
                      static_cast<int64_t>(comparison->ranks.size()));
    }
    bool finite = true;
    const auto backward = [&](std::span<const int64_t> part) -> absl::Status {
      FlatComparisons flat;
      std::vector<int64_t> places;
      for (const int64_t j : part) {
        flat.Add(*batch[static_cast<size_t>(j)]);
        for (int64_t place = first[static_cast<size_t>(j)];
             place < first[static_cast<size_t>(j) + 1]; ++place) {
          places.push_back(place);
        }
      }
      TokenBatch tokens = MakeTokenBatch(flat.rows);
      AddDropout({options_.dropout, options_.seed, options_.stage}, step,
                 places, &tokens);
      return reward_.AccumulateScores(
          tokens,
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
            BatchSums part_sums = {.loss = loss.loss,
                                   .correct = static_cast<double>(loss.correct),
                                   .margin = loss.margin_sum,
                                   .pairs = static_cast<double>(loss.pairs)};
            for (const float score : scores) {
              part_sums.scores += 1;
              part_sums.score_sum += double{score};
              part_sums.score_squares += double{score} * double{score};
            }
            sums->Add(part_sums);
            return absl::OkStatus();
          });
    };
    COX_RETURN_IF_ERROR(BackwardMicroBatches(
        reward_, shards_.Elements(static_cast<int64_t>(batch.size()), shard),
        options_.micro_batch, backward));
    if (!finite) {
      COX_RETURN_IF_ERROR(PoisonGradient(reward_));
      sums->loss = std::numeric_limits<double>::quiet_NaN();
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
    std::vector<BatchSums> own(static_cast<size_t>(shards_.own()));
    COX_RETURN_IF_ERROR(shards_.ForOwn([&](int64_t shard, size_t i) {
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
        own[i].Add({.correct = static_cast<double>(loss.correct),
                    .margin = loss.margin_sum,
                    .pairs = static_cast<double>(loss.pairs)});
        return absl::OkStatus();
      };
      return ForMicroBatches(
          shards_.Elements(static_cast<int64_t>(comparisons.size()), shard),
          ForwardRows(), forward);
    }));
    COX_ASSIGN_OR_RETURN(const std::vector<BatchSums> all, shards_.Gather(own));
    BatchSums sums;
    for (const BatchSums& part : all) {
      sums.Add(part);
    }
    if (sums.pairs > 0) {
      (*metrics)[absl::StrCat("rm/", name, "_accuracy")] =
          sums.correct / sums.pairs;
      (*metrics)[absl::StrCat("rm/", name, "_margin")] =
          sums.margin / sums.pairs;
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
    std::vector<int64_t> mine;
    std::vector<double> local;
    COX_RETURN_IF_ERROR(shards_.ForOwn([&](int64_t shard, size_t) {
      const auto forward = [&](std::span<const int64_t> part) -> absl::Status {
        std::vector<const Sequence*> rows;
        for (const int64_t j : part) {
          rows.push_back(&data_.demonstrations[static_cast<size_t>(j)]);
        }
        COX_ASSIGN_OR_RETURN(const std::vector<float> scores,
                             reward_.Scores(MakeTokenBatch(rows)));
        mine.insert(mine.end(), part.begin(), part.end());
        local.insert(local.end(), scores.begin(), scores.end());
        return absl::OkStatus();
      };
      return ForMicroBatches(shards_.Elements(count, shard), ForwardRows(),
                             forward);
    }));
    CollectiveReducer reducer(shards_.group());
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
  TrainedModel model_;
  Shards shards_;
  const RmData data_;
  const ShuffledCursor cursor_;
  RewardNormalizer normalizer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StageTrainer>> MakeRmTrainer(
    const RmOptions& options, TrainEngine& reward, Collective& group,
    RmData data) {
  if (options.batch < 1 || options.micro_batch < 0 || options.total_steps < 1) {
    return absl::InvalidArgumentError(
        "rm options: batch and total_steps must be at least 1, micro_batch "
        "not negative");
  }
  if (data.train.empty()) {
    return absl::InvalidArgumentError("rm: no comparisons to train on");
  }
  COX_ASSIGN_OR_RETURN(Shards shards, Shards::Create(options.shards, group));
  COX_ASSIGN_OR_RETURN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(options.optimizer, reward.layout()));
  return std::make_unique<RmTrainer>(options, reward, std::move(shards),
                                     std::move(data), std::move(optimizer));
}

}  // namespace cox
