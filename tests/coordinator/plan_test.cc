#include "coordinator/plan.h"

#include <set>

#include "gmock/gmock.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

StagePlan Stage(StageKind kind, int64_t steps, int64_t prompts,
                int64_t per_step, int32_t unit) {
  StagePlan stage;
  stage.kind = kind;
  stage.total_steps = steps;
  stage.prompt_count = prompts;
  stage.prompts_per_step = per_step;
  stage.unit_prompts = unit;
  stage.samples_per_prompt = 4;
  return stage;
}

RunPlan Plan(SchedulePlan schedule = {}) {
  PlanOptions options;
  options.seed = 3;
  options.schedule = schedule;
  options.stages = {Stage(StageKind::kSft, 5, 0, 0, 0),
                    Stage(StageKind::kCollect, 1, 10, 10, 4),
                    Stage(StageKind::kRm, 0, 0, 0, 0),
                    Stage(StageKind::kPpo, 6, 7, 6, 2),
                    Stage(StageKind::kEval, 2, 9, 5, 3)};
  auto plan = RunPlan::Create(options);
  EXPECT_OK(plan.status());
  return *std::move(plan);
}

TEST(RunPlanTest, VersionsFollowTheSchedule) {
  EXPECT_EQ(Plan().VersionFor(3, 5).step, 4);
  const RunPlan lagged = Plan({ScheduleMode::kFixedLag, 2, 0});
  EXPECT_EQ(lagged.VersionFor(3, 1).step, 0);
  EXPECT_EQ(lagged.VersionFor(3, 3).step, 0);
  EXPECT_EQ(lagged.VersionFor(3, 6).step, 3);
  EXPECT_EQ(lagged.VersionFor(1, 1).step, 0);
  EXPECT_EQ(lagged.VersionFor(4, 2).step, 1);
}

TEST(RunPlanTest, APassVisitsEveryRowOnce) {
  const RunPlan plan = Plan();
  // 7 rows, 6 a step: positions 0..6 are step 1 and the first of step 2.
  std::set<int64_t> rows;
  for (int32_t index = 0; index < 3; ++index) {
    for (const PlannedPrompt& p : plan.PromptsOf({3, 1, index})) {
      rows.insert(p.row);
    }
  }
  rows.insert(plan.PromptsOf({3, 2, 0})[0].row);
  EXPECT_EQ(rows.size(), 7u);
}

TEST(RunPlanTest, PromptIdsNumberTheOccurrence) {
  const std::vector<PlannedPrompt> prompts = Plan().PromptsOf({3, 2, 1});
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[0].prompt_id, (uint64_t{3} << 48) | (2u << 20) | 2u);
  EXPECT_EQ(prompts[1].prompt_id, (uint64_t{3} << 48) | (2u << 20) | 3u);
}

TEST(RunPlanTest, TheLastUnitOfARoundMayBeSmaller) {
  const RunPlan plan = Plan();
  EXPECT_EQ(plan.stage(1).units_per_step(), 3);
  EXPECT_EQ(plan.PromptsOf({1, 1, 2}).size(), 2u);
  EXPECT_FALSE(plan.UnitExists({1, 1, 3}));
  EXPECT_FALSE(plan.UnitExists({1, 2, 0}));
  EXPECT_FALSE(plan.UnitExists({0, 1, 0}));
}

TEST(RunPlanTest, BothRoundsOfEvalSeeTheSamePrompts) {
  const RunPlan plan = Plan();
  for (int32_t index = 0; index < 2; ++index) {
    const auto first = plan.PromptsOf({4, 1, index});
    const auto second = plan.PromptsOf({4, 2, index});
    ASSERT_EQ(first.size(), second.size());
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(first[i].row, second[i].row);
      EXPECT_NE(first[i].prompt_id, second[i].prompt_id);
    }
  }
  EXPECT_EQ(plan.SamplesPerPrompt(4, 1), 4);
  EXPECT_EQ(plan.SamplesPerPrompt(4, 2), 1);
}

TEST(RunPlanTest, FindsThePolicyOfAStage) {
  const RunPlan plan = Plan();
  EXPECT_EQ(plan.PolicyStageBefore(3), 0);  // not rm
  EXPECT_EQ(plan.PolicyStageBefore(4), 3);
  EXPECT_EQ(plan.PolicyStageBefore(0), -1);
}

TEST(RunPlanTest, PreferenceStagesHandOnTheirPolicy) {
  PlanOptions options;
  options.stages = {Stage(StageKind::kSft, 5, 0, 0, 0),
                    Stage(StageKind::kCollect, 1, 10, 10, 4),
                    Stage(StageKind::kRft, 0, 0, 0, 0),
                    Stage(StageKind::kDpo, 0, 0, 0, 0),
                    Stage(StageKind::kKto, 0, 0, 0, 0),
                    Stage(StageKind::kEval, 2, 9, 5, 3)};
  auto created = RunPlan::Create(options);
  ASSERT_OK(created.status());
  const RunPlan& plan = *created;
  EXPECT_EQ(plan.PolicyStageBefore(3), 2);
  EXPECT_EQ(plan.PolicyStageBefore(4), 3);
  EXPECT_EQ(plan.PolicyStageBefore(5), 4);
  EXPECT_EQ(plan.FirstTuningBefore(5), 2);
  EXPECT_EQ(plan.FirstTuningBefore(2), -1);
  EXPECT_EQ(Plan().FirstTuningBefore(4), 3);
  for (const char* name : {"rft", "dpo", "kto"}) {
    ASSERT_OK_AND_ASSIGN(const StageKind kind, ParseStageKind(name));
    EXPECT_EQ(StageKindName(kind), name);
  }
}

TEST(RunPlanTest, RefusesUnitsThatDoNotDivideTheStep) {
  PlanOptions options;
  options.stages = {Stage(StageKind::kPpo, 2, 9, 6, 4)};
  EXPECT_THAT(RunPlan::Create(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("ppo.unit_prompts")));
  options.stages = {Stage(StageKind::kEval, 1, 0, 0, 4)};
  EXPECT_THAT(
      RunPlan::Create(options).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no prompts")));
}

}  // namespace
}  // namespace cox
