#include "learner/rollout_batch.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

Trajectory MakeTrajectory(std::vector<float> behaviour,
                          std::vector<float> reference, double reward) {
  Trajectory row;
  row.id = {{2, 1, 0}, 0, 0};
  row.prompt_ids = {1};
  row.response_ids.assign(behaviour.size(), 2);
  row.behaviour_logprobs = std::move(behaviour);
  row.reference_logprobs = std::move(reference);
  row.reward_total = reward;
  row.version = {2, 0};
  return row;
}

RolloutOptions Options() {
  RolloutOptions options;
  options.stage = 2;
  options.whiten_advantages = false;
  return options;
}

// docs/algorithms.md §5: l=(-1,-2,-.5,-1.5), ref=(-1.2,-1.9,-.9,-1.5),
// beta .05, score .8: rewards (-.01, .005, -.02, .8), sum of k1 .5.
TEST(RolloutBatchTest, MatchesTheVectorOfTheReward) {
  const std::vector<Trajectory> rows = {
      MakeTrajectory({-1, -2, -.5f, -1.5f}, {-1.2f, -1.9f, -.9f, -1.5f}, 0.8)};
  ASSERT_OK_AND_ASSIGN(RolloutBatch batch,
                       MakeRolloutBatch(1, rows, Options()));
  batch.proximal = rows[0].behaviour_logprobs;
  batch.values = {0, 0, 0, 0};
  ASSERT_OK(ComputeAdvantages(Options(), 0.05, &batch));
  EXPECT_NEAR(batch.mean_kl, 0.5, 1e-6);
  EXPECT_NEAR(batch.metrics.at("objective/kl"), 0.5, 1e-6);
  // .8 - .05 * .5
  EXPECT_NEAR(batch.metrics.at("objective/score_total"), 0.775, 1e-6);
  EXPECT_NEAR(batch.metrics.at("objective/entropy"), 5.0, 1e-6);
  // lambda .95, V = 0: A_3 = .8, A_2 = -.02 + .95 * .8.
  EXPECT_NEAR(batch.advantages[3], 0.8, 1e-6);
  EXPECT_NEAR(batch.advantages[2], 0.74, 1e-6);
  // Equal log-probs of equal versions.
  EXPECT_EQ(batch.metrics.at("mismatch/max_abs"), 0.0);
  EXPECT_EQ(batch.metrics.at("offpolicy/w_max"), 1.0);
}

TEST(RolloutBatchTest, APromptNumberBelongsToItsUnit) {
  std::vector<Trajectory> rows(4, MakeTrajectory({-1}, {-1}, 0));
  for (int32_t i = 0; i < 4; ++i) {
    rows[static_cast<size_t>(i)].id = {{2, 1, i / 2}, 0, i % 2};
  }
  ASSERT_OK_AND_ASSIGN(const RolloutBatch batch,
                       MakeRolloutBatch(1, rows, Options()));
  EXPECT_THAT(batch.group, ::testing::ElementsAre(0, 0, 1, 1));
}

// docs/algorithms.md §5 (placement): after_last uses the value one position
// later and keeps that position out of the policy's mask.
TEST(RolloutBatchTest, MatchesTheVectorOfTheLaterPlacement) {
  std::vector<Trajectory> rows = {
      MakeTrajectory({-1, -2, -.5f}, {-1.2f, -1.9f, -.9f}, 0.8),
      MakeTrajectory({-1, -1, -1, -1}, {-1, -1, -1, -1}, 0)};
  rows[1].id.prompt = 1;
  RolloutOptions options = Options();
  options.shape.position = ScorePosition::kAfterLast;
  ASSERT_OK_AND_ASSIGN(RolloutBatch batch, MakeRolloutBatch(1, rows, options));
  batch.proximal = {-1, -2, -.5f, 0, -1, -1, -1, -1};
  batch.values = {.5f, .6f, .4f, .9f, 0, 0, 0, 0};
  ASSERT_OK(ComputeAdvantages(options, 0.05, &batch));
  EXPECT_NEAR(batch.advantages[0], 0.252213, 1e-5);
  EXPECT_NEAR(batch.advantages[1], 0.170750, 1e-5);
  EXPECT_NEAR(batch.advantages[2], 0.385, 1e-5);
  EXPECT_EQ(batch.advantages[3], 0.0);
  EXPECT_EQ(batch.value_mask[3], 1);
  EXPECT_EQ(batch.mask[3], 0);
  EXPECT_NEAR(batch.returns[3], 0.8, 1e-6);
}

TEST(RolloutBatchTest, ExcludesWhatCannotBeTrained) {
  std::vector<Trajectory> rows = {
      MakeTrajectory({-1}, {-1}, 1), MakeTrajectory({-1}, {-1}, 1),
      MakeTrajectory({-1}, {-1}, 1), MakeTrajectory({}, {}, 1)};
  rows[1].reward_total.reset();
  rows[2].finish = FinishReason::kAbort;
  ASSERT_OK_AND_ASSIGN(const RolloutBatch batch,
                       MakeRolloutBatch(1, rows, Options()));
  EXPECT_THAT(batch.trained, ::testing::ElementsAre(1, 0, 0, 0));
  EXPECT_EQ(batch.metrics.at("rollout/excluded"), 3.0);
  EXPECT_EQ(batch.metrics.at("rollout/abort_frac"), 0.25);
  EXPECT_EQ(batch.metrics.at("rollout/unscored_frac"), 0.25);
  EXPECT_EQ(batch.metrics.at("objective/scores"), 1.0);
}

TEST(RolloutBatchTest, ChecksTheVersionAgainstTheSchedule) {
  const auto accepts = [](RolloutSchedule mode, int64_t step, int64_t version) {
    RolloutOptions options = Options();
    options.mode = mode;
    options.lag = 1;
    options.eta = 2;
    std::vector<Trajectory> rows = {MakeTrajectory({-1}, {-1}, 1)};
    rows[0].version.step = version;
    return MakeRolloutBatch(step, rows, options).ok();
  };
  EXPECT_TRUE(accepts(RolloutSchedule::kSync, 5, 4));
  EXPECT_FALSE(accepts(RolloutSchedule::kSync, 5, 3));
  EXPECT_TRUE(accepts(RolloutSchedule::kFixedLag, 5, 3));
  EXPECT_FALSE(accepts(RolloutSchedule::kFixedLag, 5, 4));
  EXPECT_TRUE(accepts(RolloutSchedule::kFixedLag, 1, 0));
  EXPECT_TRUE(accepts(RolloutSchedule::kStreaming, 5, 2));
  EXPECT_TRUE(accepts(RolloutSchedule::kStreaming, 5, 4));
  EXPECT_FALSE(accepts(RolloutSchedule::kStreaming, 5, 1));
  EXPECT_FALSE(accepts(RolloutSchedule::kStreaming, 5, 5));
}

TEST(RolloutBatchTest, WithoutAReferenceTheDivergenceIsZero) {
  const std::vector<Trajectory> rows = {MakeTrajectory({-1, -2}, {}, 1)};
  RolloutOptions options = Options();
  EXPECT_FALSE(MakeRolloutBatch(1, rows, options).ok());
  options.needs_reference = false;
  ASSERT_OK_AND_ASSIGN(RolloutBatch batch, MakeRolloutBatch(1, rows, options));
  batch.proximal = {-1.5f, -2.5f};
  ASSERT_OK(ComputeAdvantages(options, 0.0, &batch));
  EXPECT_EQ(batch.mean_kl, 0.0);
}

}  // namespace
}  // namespace cox
