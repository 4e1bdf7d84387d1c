#include "actor/unit_work.h"

#include "gtest/gtest.h"
#include "lib/engine/canary.h"
#include "lib/engine/fake.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

UnitWork Work() {
  UnitWork work;
  work.unit = {2, 3, 1};
  work.version = {2, 2};
  work.policy_hash = std::string(64, 'a');
  work.samples_per_prompt = 2;
  work.prompts = {
      {.prompt_id = 70, .ids = {1, 2}, .instruction_ids = {}, .text = "one"},
      {.prompt_id = 71, .ids = {3}, .instruction_ids = {}, .text = "two"}};
  return work;
}

UnitSampling Sampling() {
  UnitSampling sampling;
  sampling.seed = 9;
  sampling.max_new_tokens = 3;
  sampling.sampling.eos_ids = {0};
  return sampling;
}

TEST(UnitWorkTest, RowsArePromptMajor) {
  UnitSampling sampling = Sampling();
  sampling.stop_strings = {"\n"};
  const GenerateRequest request = MakeGenerateRequest(Work(), sampling);
  EXPECT_EQ(request.stop_strings, sampling.stop_strings);
  EXPECT_EQ(request.prompts,
            (std::vector<std::vector<int32_t>>{{1, 2}, {1, 2}, {3}, {3}}));
  EXPECT_EQ(request.prompt_ids, (std::vector<uint64_t>{70, 70, 71, 71}));
  EXPECT_EQ(request.sample_indices, (std::vector<uint64_t>{0, 1, 0, 1}));
  EXPECT_TRUE(request.instructions.empty());
  EXPECT_EQ(request.seed, 9u);
}

TEST(UnitWorkTest, TrajectoriesCarryTheirOrigin) {
  auto engine = MakeFakePolicyEngine();
  ASSERT_OK(engine->Load(*FakeSnapshot(FakeModelConfig(7, 8), "policy", 1)));
  ASSERT_OK_AND_ASSIGN(
      const GenerateResult result,
      engine->Generate(MakeGenerateRequest(Work(), Sampling())));
  ASSERT_OK_AND_ASSIGN(const auto trajectories,
                       MakeTrajectories(Work(), result));
  ASSERT_EQ(trajectories.size(), 4u);
  const Trajectory& last = trajectories[3];
  EXPECT_EQ(last.id, (TrajectoryId{{2, 3, 1}, 1, 1}));
  EXPECT_EQ(last.prompt_id, 71u);
  EXPECT_EQ(last.prompt_ids, (std::vector<int32_t>{3}));
  EXPECT_EQ(last.response_ids, result.tokens[3]);
  EXPECT_EQ(last.version, (PolicyVersion{2, 2}));
  EXPECT_FALSE(last.reward_total.has_value());
  EXPECT_OK(SerializeUnit(trajectories).status());
}

TEST(UnitWorkTest, ASampleIsAFunctionOfItsKeysNotOfItsUnit) {
  auto engine = MakeFakePolicyEngine();
  ASSERT_OK(engine->Load(*FakeSnapshot(FakeModelConfig(7, 8), "policy", 1)));
  UnitWork alone = Work();
  alone.prompts.erase(alone.prompts.begin());
  const auto both = engine->Generate(MakeGenerateRequest(Work(), Sampling()));
  const auto one = engine->Generate(MakeGenerateRequest(alone, Sampling()));
  EXPECT_EQ(both->tokens[2], one->tokens[0]);
  EXPECT_EQ(both->logprobs[3], one->logprobs[1]);
}

TEST(UnitWorkTest, RefusesImpossibleUnits) {
  UnitWork work = Work();
  work.prompts[1].ids.clear();
  EXPECT_THAT(ValidateUnitWork(work),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("prompts[1].ids")));
  work = Work();
  work.samples_per_prompt = 0;
  EXPECT_FALSE(ValidateUnitWork(work).ok());
  work.samples_per_prompt = 40000;
  EXPECT_FALSE(ValidateUnitWork(work).ok());
  work.prompts.clear();
  EXPECT_FALSE(ValidateUnitWork(work).ok());
}

TEST(UnitWorkTest, ResultsOfAnotherShapeAreOurBug) {
  GenerateResult result;
  result.tokens = {{1}};
  EXPECT_THAT(MakeTrajectories(Work(), result),
              StatusIs(absl::StatusCode::kInternal));
}

TEST(CanaryTest, FindsWeightsThatDoNotWork) {
  const ModelConfig config = FakeModelConfig(7, 8);
  auto engine = MakeFakePolicyEngine();
  ASSERT_OK(engine->Load(*FakeSnapshot(config, "policy", 1)));
  const auto canary = CanaryLogprobs(engine.get());
  ASSERT_OK(canary.status());
  ASSERT_EQ(canary->size(), 6u);
  EXPECT_OK(CompareCanary(*canary, {}, kCanaryBound));
  EXPECT_OK(CompareCanary(*canary, *canary, 0.0f));
  std::vector<float> off = *canary;
  off[2] -= 2 * kCanaryBound;
  EXPECT_THAT(CompareCanary(*canary, off, kCanaryBound),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("token 3")));
  off.pop_back();
  EXPECT_FALSE(CompareCanary(*canary, off, kCanaryBound).ok());
  const Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> broken(layout.arena_bytes / 4,
                            std::numeric_limits<float>::quiet_NaN());
  ASSERT_OK(engine->Load(*SnapshotFromFloats(layout, broken)));
  EXPECT_THAT(CanaryLogprobs(engine.get()).status(),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("canary")));
}

}  // namespace
}  // namespace cox
