// Which keys the trainers give to which sequence, seen by an engine that notes
// them. What the keys do: tests/model/dropout_test.cc.

#include <map>
#include <mutex>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/lm_trainer.h"
#include "learner/rm_trainer.h"
#include "lib/base/rng.h"
#include "lib/engine/fake.h"
#include "tests/learner/learner_testing.h"

namespace cox {
namespace {

using testing::RankParts;
using testing::RunSteps;

struct Seen {
  std::mutex mutex;
  int64_t passes = 0;
  // Key -> the sequences that were trained with it.
  std::map<uint64_t, std::vector<std::vector<int32_t>>> rows;
  std::set<double> rates;
};

// The fake's network, which has no dropout of its own.
class NotingEngine final : public TrainEngine {
 public:
  explicit NotingEngine(Seen& seen) : seen_(seen) {}
  absl::Status Load(std::shared_ptr<const Snapshot> snapshot) override {
    return engine_->Load(std::move(snapshot));
  }
  const ModelConfig& config() const override { return engine_->config(); }
  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch,
                                         double temperature,
                                         bool want_entropy) override {
    EXPECT_EQ(batch.dropout, 0);
    return engine_->Logprobs(batch, temperature, want_entropy);
  }
  absl::StatusOr<std::vector<float>> Values(const TokenBatch& batch) override {
    return engine_->Values(batch);
  }
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch& batch) override {
    EXPECT_EQ(batch.dropout, 0);
    return engine_->Scores(batch);
  }
  std::span<float> Parameters() override { return engine_->Parameters(); }
  std::span<float> Gradients() override { return engine_->Gradients(); }
  const Manifest& layout() const override { return engine_->layout(); }
  void ZeroGradients() override { engine_->ZeroGradients(); }
  absl::Status AccumulateLogprobs(const TokenBatch& batch, double temperature,
                                  bool want_entropy,
                                  const LogprobLoss& loss) override {
    return engine_->AccumulateLogprobs(Note(batch), temperature, want_entropy,
                                       loss);
  }
  absl::Status AccumulateValues(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    return engine_->AccumulateValues(Note(batch), loss);
  }
  absl::Status AccumulateScores(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    return engine_->AccumulateScores(Note(batch), loss);
  }

 private:
  TokenBatch Note(TokenBatch batch) {
    const std::lock_guard<std::mutex> lock(seen_.mutex);
    ++seen_.passes;
    seen_.rates.insert(batch.dropout);
    for (size_t b = 0; b < batch.dropout_keys.size(); ++b) {
      const auto begin =
          batch.ids.begin() + static_cast<std::ptrdiff_t>(b) * batch.length;
      seen_.rows[batch.dropout_keys[b]].emplace_back(begin,
                                                     begin + batch.lengths[b]);
    }
    batch.dropout = 0;
    batch.dropout_keys.clear();
    return batch;
  }

  Seen& seen_;
  std::unique_ptr<TrainEngine> engine_ = MakeFakeTrainEngine();
};

absl::StatusOr<std::unique_ptr<TrainEngine>> Noting(Seen& seen, HeadKind head) {
  auto engine = std::make_unique<NotingEngine>(seen);
  COX_ASSIGN_OR_RETURN(auto snapshot,
                       FakeSnapshot(FakeModelConfig(8, 8, head), "policy", 1));
  COX_RETURN_IF_ERROR(engine->Load(snapshot));
  return engine;
}

// All different, two tokens or more.
std::vector<Sequence> Texts(int32_t count) {
  std::vector<Sequence> texts;
  for (int32_t p = 0; p < count; ++p) {
    Sequence& text = texts.emplace_back();
    text.ids = {p % 8, p / 8, 3};
    text.ids.resize(static_cast<size_t>(2 + p % 2));
  }
  return texts;
}

testing::MakeRank MakeLm(Seen& seen, double rate, int64_t micro_batch,
                         uint64_t seed = 7, int32_t stage = 2) {
  return [=, &seen](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    COX_ASSIGN_OR_RETURN(parts.policy, Noting(seen, HeadKind::kLanguageModel));
    parts.source = MakeExampleSource(Texts(10), 5, "sft/2");
    LmOptions options;
    options.batch = 6;
    options.micro_batch = micro_batch;
    options.total_steps = 9;
    options.optimizer = testing::TestOptimizer(0.01);
    options.dropout = {rate, seed, stage};
    COX_ASSIGN_OR_RETURN(
        parts.trainer,
        MakeLmTrainer(options, *parts.policy, group, *parts.source, Texts(3)));
    return parts;
  };
}

testing::MakeRank MakeRm(Seen& seen, double rate, int64_t micro_batch) {
  return [=, &seen](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    COX_ASSIGN_OR_RETURN(parts.policy, Noting(seen, HeadKind::kScalar));
    RmOptions options;
    options.stage = 3;
    options.seed = 7;
    options.batch = 5;
    options.micro_batch = micro_batch;
    options.total_steps = 9;
    options.optimizer = testing::TestOptimizer(0.01);
    options.dropout = rate;
    RmData data;
    const std::vector<Sequence> texts = Texts(40);
    for (size_t first = 0; first + 4 < texts.size();) {
      Comparison& row = data.train.emplace_back();
      for (size_t k = 0; k < 2 + first % 3; ++k) {
        row.completions.push_back(texts[first + k]);
        row.ranks.push_back(static_cast<int64_t>(k));
      }
      first += row.ranks.size();
    }
    data.demonstrations = Texts(3);
    COX_ASSIGN_OR_RETURN(parts.trainer, MakeRmTrainer(options, *parts.policy,
                                                      group, std::move(data)));
    return parts;
  };
}

BatchInput NoInput(int64_t) { return {}; }

TEST(LearnerDropoutTest, KeysAreElementsOfAStreamPerStageAndStep) {
  TokenBatch batch;
  AddDropout({0.1, 7, 2}, 31, std::vector<int64_t>{4, 0}, &batch);
  CounterRng rng(7, "dropout/2/31");
  rng.Seek(4);
  const uint64_t fourth = rng.NextUint64();
  rng.Seek(0);
  EXPECT_THAT(batch.dropout_keys,
              ::testing::ElementsAre(fourth, rng.NextUint64()));
  EXPECT_EQ(batch.dropout, 0.1);
  TokenBatch off;
  AddDropout({0.0, 7, 2}, 31, std::vector<int64_t>{4}, &off);
  EXPECT_EQ(off.dropout, 0);
  EXPECT_TRUE(off.dropout_keys.empty());
}

TEST(LearnerDropoutTest, RanksAndMicroBatchesGiveEverySequenceTheSameKey) {
  const auto rows_of = [](const auto& make, int world, double rate,
                          int64_t micro) {
    Seen seen;
    EXPECT_OK(RunSteps(world, make(seen, rate, micro), NoInput, 1, 3));
    EXPECT_THAT(seen.rates, ::testing::ElementsAre(rate));
    return seen.rows;
  };
  const auto lm = [](Seen& seen, double rate, int64_t micro) {
    return MakeLm(seen, rate, micro);
  };
  const auto one = rows_of(lm, 1, 0.25, 0);
  // Every sequence of every step has a key of its own.
  EXPECT_EQ(one.size(), 18u);
  for (const auto& [key, rows] : one) EXPECT_EQ(rows.size(), 1u) << key;
  const auto rm_one = rows_of(MakeRm, 1, 0.25, 0);
  for (const auto& [key, rows] : rm_one) EXPECT_EQ(rows.size(), 1u) << key;
  EXPECT_GT(rm_one.size(), 30u);
  for (const auto& [world, micro] :
       std::vector<std::pair<int, int64_t>>{{1, 1}, {2, 0}, {4, 1}}) {
    EXPECT_EQ(rows_of(lm, world, 0.25, micro), one) << world;
    EXPECT_EQ(rows_of(MakeRm, world, 0.25, micro), rm_one) << world;
  }
  EXPECT_TRUE(rows_of(lm, 1, 0.0, 0).empty());
}

TEST(LearnerDropoutTest, SeedAndStageChangeEveryKey) {
  const auto keys = [](uint64_t seed, int32_t stage) {
    Seen seen;
    EXPECT_OK(RunSteps(1, MakeLm(seen, 0.25, 0, seed, stage), NoInput, 1, 3));
    std::set<uint64_t> out;
    for (const auto& [key, rows] : seen.rows) out.insert(key);
    return out;
  };
  std::set<uint64_t> all = keys(7, 2);
  all.merge(keys(8, 2));
  all.merge(keys(7, 3));
  EXPECT_EQ(all.size(), 3u * 18u);
}

TEST(LearnerDropoutTest, AResumedRunDrawsTheSameKeys) {
  Seen whole;
  ASSERT_OK(RunSteps(1, MakeLm(whole, 0.25, 0), NoInput, 1, 4));
  Seen parts;
  ASSERT_OK_AND_ASSIGN(const testing::RunOutcome half,
                       RunSteps(1, MakeLm(parts, 0.25, 0), NoInput, 1, 2));
  ASSERT_OK(RunSteps(2, MakeLm(parts, 0.25, 0), NoInput, 3, 4,
                     testing::RestoreFrom(half)));
  EXPECT_EQ(parts.rows, whole.rows);
}

}  // namespace
}  // namespace cox
