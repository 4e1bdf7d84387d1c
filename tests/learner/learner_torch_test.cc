// The trainers on the LibTorch engines: a tiny GPT-2.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/lm_trainer.h"
#include "lib/engine/model_config.h"
#include "lib/model/api.h"
#include "tests/learner/learner_testing.h"

namespace cox {
namespace {

using testing::RankParts;
using testing::RelativeDistance;
using testing::RunOutcome;
using testing::RunSteps;

ModelConfig TinyGpt2() {
  ModelConfig config;
  config.vocab_size = 16;
  config.hidden = 16;
  config.layers = 2;
  config.heads = 2;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.intermediate = 32;
  config.max_positions = 16;
  return config;
}

absl::StatusOr<RankParts> MakeTinyLm(double lr, Collective& group) {
  RankParts parts;
  COX_ASSIGN_OR_RETURN(parts.policy, MakeTrainEngine(EngineOptions()));
  const Manifest layout = ParameterLayout(TinyGpt2(), "policy");
  std::vector<float> parameters(layout.arena_bytes / sizeof(float), 0.0f);
  InitializeParameters(TinyGpt2(), 3, parameters);
  COX_ASSIGN_OR_RETURN(auto snapshot, SnapshotFromFloats(layout, parameters));
  COX_RETURN_IF_ERROR(parts.policy->Load(snapshot));
  std::vector<Sequence> examples;
  for (int32_t p = 0; p < 12; ++p) {
    Sequence& sequence = examples.emplace_back();
    for (int32_t k = 0; k < 4 + p % 4; ++k) {
      sequence.ids.push_back((p + 3 * k) % 16);
    }
  }
  parts.source = MakeExampleSource(examples, 1, "text");
  LmOptions options;
  options.batch = 6;
  options.total_steps = 60;
  options.heldout_every = 0;
  options.optimizer = testing::TestOptimizer(lr);
  COX_ASSIGN_OR_RETURN(parts.trainer,
                       MakeLmTrainer(options, *parts.policy, group,
                                     *parts.source, {}));
  return parts;
}

testing::MakeRank TinyLm(double lr) {
  return [lr](Collective& group) { return MakeTinyLm(lr, group); };
}

BatchInput NoInput(int64_t) { return {}; }

class LearnerTorchTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { ASSERT_OK(InitTorch(EngineOptions())); }
};

TEST_F(LearnerTorchTest, LossDecreases) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome run,
                       RunSteps(1, TinyLm(0.01), NoInput, 1, 60));
  // ln 16 = 2.77 at the start.
  EXPECT_NEAR(run.results.front().metrics.at("loss/lm"), 2.77, 0.1);
  EXPECT_LT(run.results.back().metrics.at("loss/lm"), 1.0);
}

// The gradient of attention's key biases is 0 but for rounding, which Adam
// magnifies up to the learning rate: hence the schema's default of 0.001.
TEST_F(LearnerTorchTest, TwoRanksGiveTheSameUpdateAsOne) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, TinyLm(0.001), NoInput, 1, 3));
  ASSERT_OK_AND_ASSIGN(const RunOutcome two,
                       RunSteps(2, TinyLm(0.001), NoInput, 1, 3));
  EXPECT_LE(RelativeDistance(two.policy, one.policy), 1e-6);
}

TEST_F(LearnerTorchTest, EqualRunsAndResumedRunsAreEqualBitForBit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome whole,
                       RunSteps(1, TinyLm(0.001), NoInput, 1, 4));
  ASSERT_OK_AND_ASSIGN(const RunOutcome half,
                       RunSteps(1, TinyLm(0.001), NoInput, 1, 2));
  ASSERT_OK_AND_ASSIGN(const RunOutcome rest,
                       RunSteps(1, TinyLm(0.001), NoInput, 3, 4,
                                testing::RestoreFrom(half)));
  EXPECT_EQ(rest.weight_hash, whole.weight_hash);
}

}  // namespace
}  // namespace cox
