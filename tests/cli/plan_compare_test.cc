#include "cli/plan_compare.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "lib/base/fault_fs.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

class PlanCompareTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) {
    ASSERT_OK(WriteFileDurably(Fs::Real(), JoinPath(dir_, name), text));
  }
  PlanCompareTest() {
    dir_ = JoinPath(::testing::TempDir(), absl::StrCat("compare-", getpid()));
    EXPECT_OK(Fs::Real().MakeDirs(dir_));
  }
  ~PlanCompareTest() override { static_cast<void>(Fs::Real().RemoveAll(dir_)); }
  std::string dir_;
};

std::string Step(const std::string& stage, int step, double seconds,
                 double end = 0) {
  return absl::StrCat(R"({"stage":")", stage, R"(","step":)", step,
                      R"(,"timing_s/step":)", seconds, R"(,"rollout/length":4)",
                      R"(,"ts":)", end, "}\n");
}

RunSizes Answers() {
  RunSizes sizes;
  sizes.answer_tokens = 3;
  return sizes;
}

TEST_F(PlanCompareTest, MedianFromCommitToCommitWithoutFirstAndLast) {
  Write("metrics.jsonl", Step("sft", 1, 1, 190) + Step("sft", 2, 1, 280) +
                             Step("sft", 3, 1, 283) + Step("sft", 4, 1, 285) +
                             Step("sft", 5, 1, 289) + Step("sft", 6, 1, 390) +
                             Step("rm", 1, 6, 400) + Step("rm", 2, 7, 500) +
                             R"({"stage":"sft","step":6,"timi)");
  const auto run = ReadMeasuredRun(Fs::Real(), dir_);
  ASSERT_OK(run.status());
  EXPECT_EQ(run->stages.at("sft").step_s, 4);  // of 90, 3, 2, 4 without 101
  EXPECT_EQ(run->stages.at("sft").steps, 6);
  EXPECT_EQ(run->stages.at("sft").answer_tokens, 4);
  EXPECT_EQ(run->stages.at("rm").step_s, 7);  // none between: its own words
  EXPECT_TRUE(run->private_bytes.empty());
}

TEST_F(PlanCompareTest, NoMetricsIsAnError) {
  EXPECT_THAT(ReadMeasuredRun(Fs::Real(), dir_).status(),
              StatusIs(absl::StatusCode::kNotFound));
  Write("metrics.jsonl", "{\"stage\":\"eval\",\"step\":1}\n");
  EXPECT_THAT(ReadMeasuredRun(Fs::Real(), dir_).status(),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("no step")));
}

RunEstimate Predicted() {
  RunEstimate run;
  StageEstimate& stage = run.stages.emplace_back();
  stage.stage = "sft";
  stage.step_s = 4.5;
  stage.roles = {{.role = "learner",
                  .processes = 2,
                  .memory_bytes = 300e6,
                  .all_memory_bytes = 500e6},
                 {.role = "run", .all_memory_bytes = 3e6}};
  return run;
}

TEST_F(PlanCompareTest, TableHasRatios) {
  Write("metrics.jsonl", Step("sft", 1, 3));
  Write("usage.json", R"({"peak_private_bytes":400000000,"processes":{)"
                      R"("learner-0":{"private_bytes":250000000},)"
                      R"("learner-1":{"private_bytes":160000000}}})");
  const auto measured = ReadMeasuredRun(Fs::Real(), dir_);
  ASSERT_OK(measured.status());
  ClusterSpec cluster;
  cluster.role_private = {{"learner-0", 300e6}, {"learner", 200e6}};
  const std::string table =
      ComparisonTable(Predicted(), Answers(), cluster, *measured);
  EXPECT_THAT(table, ContainsRegex("sft, step +4.500 s +3.000 s +1.50\n"));
  EXPECT_THAT(
      table, ContainsRegex("learner-0, private +300.000 MB +250.000 MB +1.20"));
  EXPECT_THAT(
      table, ContainsRegex("learner-1, private +200.000 MB +160.000 MB +1.25"));
  // Without `cox run`, which watches the others.
  EXPECT_THAT(table,
              ContainsRegex("all, private +500.000 MB +400.000 MB +1.25"));
}

TEST_F(PlanCompareTest, SaysThatMemoryIsNotThere) {
  Write("metrics.jsonl", Step("sft", 1, 3));
  const auto measured = ReadMeasuredRun(Fs::Real(), dir_);
  ASSERT_OK(measured.status());
  const std::string table =
      ComparisonTable(Predicted(), Answers(), {}, *measured);
  EXPECT_THAT(table, HasSubstr("no usage.json"));
  EXPECT_THAT(table, Not(HasSubstr("private")));
}

}  // namespace
}  // namespace cox
