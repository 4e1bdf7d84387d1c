#include "learner/rm_trainer.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/engine/fake.h"
#include "tests/learner/learner_testing.h"
#include "tests/learner/registered.h"

namespace cox {
namespace {

using testing::RankParts;
using testing::RelativeDistance;
using testing::RunOutcome;
using testing::RunSteps;

// The higher its last token, the better an answer; one prompt has a tie and
// one has nothing but ties.
std::vector<Comparison> Comparisons() {
  std::vector<Comparison> comparisons;
  for (int32_t p = 0; p < 9; ++p) {
    Comparison comparison;
    const int32_t count = 2 + p % 3;
    for (int32_t k = 0; k < count; ++k) {
      Sequence sequence;
      sequence.ids = {p % 4, (p + k) % 4, 4 + k};
      sequence.first_target = 1;
      comparison.completions.push_back(sequence);
      comparison.ranks.push_back(p == 8 ? 1 : count - k);
    }
    comparisons.push_back(comparison);
  }
  return comparisons;
}

testing::MakeRank MakeRm(int64_t total_steps, int64_t micro_batch,
                         int64_t shards = kDefaultShards) {
  return [=](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    parts.policy = MakeFakeTrainEngine();
    COX_ASSIGN_OR_RETURN(
        auto snapshot,
        FakeSnapshot(FakeModelConfig(8, 4, HeadKind::kScalar), "reward", 2));
    COX_RETURN_IF_ERROR(parts.policy->Load(snapshot));
    RmOptions options;
    options.seed = 3;
    options.batch = 4;
    options.micro_batch = micro_batch;
    options.shards = shards;
    options.total_steps = total_steps;
    // Without the centring term the loss does not see a common shift of all
    // scores: its gradient there is rounding noise, which Adam magnifies.
    options.loss.center = 0.01;
    options.optimizer = testing::TestOptimizer(0.05);
    RmData data;
    data.train = Comparisons();
    data.heldout = Comparisons();
    data.human = Comparisons();
    for (const Comparison& comparison : data.train) {
      data.demonstrations.push_back(comparison.completions[0]);
    }
    COX_ASSIGN_OR_RETURN(parts.trainer, MakeRmTrainer(options, *parts.policy,
                                                      group, std::move(data)));
    return parts;
  };
}

BatchInput NoInput(int64_t) { return {}; }

// Adam forgets the gradient's scale, its norm does not.
TEST(RmTrainerTest, MicroBatchesShareTheDenominator) {
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome whole,
      RunSteps(1, MakeRm(1, /*micro_batch=*/0, /*shards=*/1), NoInput, 1, 1));
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome single,
      RunSteps(2, MakeRm(1, /*micro_batch=*/1), NoInput, 1, 1));
  for (const char* metric : {"loss/rm", "grad_norm/rm", "rm/accuracy"}) {
    EXPECT_NEAR(single.results[0].metrics.at(metric),
                whole.results[0].metrics.at(metric), 1e-6)
        << metric;
  }
}

TEST(RmTrainerTest, RanksDoNotChangeABit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, MakeRm(3, 0), NoInput, 1, 3));
  testing::ExpectRegistered(one.results);
  for (const int world : {2, 4}) {
    ASSERT_OK_AND_ASSIGN(const RunOutcome many,
                         RunSteps(world, MakeRm(3, 0), NoInput, 1, 3));
    testing::ExpectSameBits(many, one);
  }
}

TEST(RmTrainerTest, OtherSumsChangeNoMoreThanRounding) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, MakeRm(3, 0), NoInput, 1, 3));
  ASSERT_OK_AND_ASSIGN(const RunOutcome three,
                       RunSteps(3, MakeRm(3, 1), NoInput, 1, 3));
  EXPECT_LE(RelativeDistance(three.policy, one.policy), 1e-6);
  EXPECT_NEAR(three.results[2].metrics.at("rm/reward_bias"),
              one.results[2].metrics.at("rm/reward_bias"), 1e-6);
  EXPECT_EQ(three.results[2].metrics.at("rm/heldout_accuracy"),
            one.results[2].metrics.at("rm/heldout_accuracy"));
}

TEST(RmTrainerTest, LearnsTheOrderAndCentresDemonstrations) {
  std::unique_ptr<Collective> group = MakeSingleRank();
  ASSERT_OK_AND_ASSIGN(RankParts parts, MakeRm(30, 0)(*group));
  StepResult result;
  for (int64_t step = 1; step <= 30; ++step) {
    ASSERT_OK_AND_ASSIGN(result, parts.trainer->Step(step, {}));
  }
  EXPECT_EQ(result.metrics.at("rm/heldout_accuracy"), 1.0);
  EXPECT_GT(result.metrics.at("rm/heldout_margin"), 1.0);
  ASSERT_OK_AND_ASSIGN(const auto trained, parts.trainer->Trained());
  ASSERT_OK_AND_ASSIGN(const ModelConfig config,
                       ModelConfig::FromJson(trained->manifest.config_json));
  EXPECT_EQ(config.reward_bias, result.metrics.at("rm/reward_bias"));
  // Mean over demonstrations of gain * raw + bias is 0.
  const std::vector<Comparison> comparisons = Comparisons();
  std::vector<const Sequence*> rows;
  for (const Comparison& comparison : comparisons) {
    rows.push_back(&comparison.completions[0]);
  }
  ASSERT_OK_AND_ASSIGN(const auto scores,
                       parts.policy->Scores(MakeTokenBatch(rows)));
  double mean = 0;
  for (const float score : scores) {
    mean += (config.reward_gain * double{score} + config.reward_bias) /
            static_cast<double>(scores.size());
  }
  EXPECT_NEAR(mean, 0.0, 1e-6);
}

TEST(RmTrainerTest, AResumedRunIsTheContinuousOneBitForBit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome whole,
                       RunSteps(2, MakeRm(6, 0), NoInput, 1, 6));
  ASSERT_OK_AND_ASSIGN(const RunOutcome half,
                       RunSteps(2, MakeRm(6, 0), NoInput, 1, 2));
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome rest,
      RunSteps(2, MakeRm(6, 0), NoInput, 3, 6, testing::RestoreFrom(half)));
  EXPECT_EQ(rest.weight_hash, whole.weight_hash);
  EXPECT_EQ(rest.state, whole.state);
}

}  // namespace
}  // namespace cox
