// Real processes over loopback gRPC: the whole recipe, its repeatability and
// what happens when a process is killed.

#include <signal.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "nlohmann/json.hpp"
#include "tests/process/run_harness.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using cox::testing::TempDir;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Waits until the run trains and has committed `steps` steps.
bool ReachesSteps(const std::string& run, size_t steps) {
  return Eventually([&] {
    return Fs::Real().Exists(JoinPath(run, "ledger.db")) &&
           FindProcess(run, "learner-0") != 0 &&
           CommittedSteps(run).size() >= steps;
  });
}

TEST(RunTest, WholeRecipeEndsAndLeavesEverything) {
  TempDir dir;
  const std::string file = WriteMiniRecipe(dir.path());
  const std::string run = JoinPath(dir.path(), "run");
  const RunResult result = Cox({"run", file, "run_dir=" + run}, dir.path());
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("gold"));
  for (const char* name :
       {"config.yaml", "endpoints.json", "ledger.db", "metrics.jsonl",
        "samples.jsonl", "tokenizer.json", "comparisons.jsonl", "eval.json",
        "report.html", "logs/learner-1.log"}) {
    EXPECT_TRUE(Fs::Real().Exists(JoinPath(run, name))) << name;
  }
  // 12 pretrain, 8 sft, rm: ceil(24 * 0.85 / 8) = 3, 4 ppo.
  EXPECT_EQ(CommittedSteps(run).size(), 12u + 8u + 3u + 4u);
  // collect 24/6, ppo 4 * 16/4, eval 2 * 16/8.
  EXPECT_EQ(UnitHashes(run).size(), 4u + 16u + 4u);
  const RunResult verify = Cox({"ckpt", "verify", run}, dir.path());
  EXPECT_EQ(verify.exit_code, 0) << verify.output;
  const RunResult ledger = Cox({"ledger", "verify", run}, dir.path());
  EXPECT_EQ(ledger.exit_code, 0) << ledger.output;
  // Every learning metric of every stage, computed again.
  const RunResult metrics = Cox({"explain", "--check", run}, dir.path());
  EXPECT_EQ(metrics.exit_code, 0) << metrics.output;
}

TEST(RunTest, SameSeedGivesTheSameBitsWithAnyNumberOfProcesses) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path(), "numerics: {shards: 4}");
  const std::string first = JoinPath(dir.path(), "first");
  const RunResult a = Cox({"run", file, "run_dir=" + first}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  EXPECT_THAT(CommittedSteps(first), Not(IsEmpty()));
  for (const std::string learners : {"1", "4"}) {
    const std::string other = JoinPath(dir.path(), learners);
    const RunResult b = Cox({"run", file, "run_dir=" + other, "roles.actors=1",
                             "roles.learners=" + learners},
                            dir.path());
    ASSERT_EQ(b.exit_code, 0) << b.output;
    EXPECT_EQ(CommittedSteps(first), CommittedSteps(other)) << learners;
    EXPECT_EQ(UnitHashes(first), UnitHashes(other)) << learners;
  }
}

// People rank the samples: the run waits for them in a named state.
TEST(RunTest, WaitsForLabelsOfPeopleAndGoesOn) {
  TempDir dir;
  const std::string file = WriteMiniRecipe(dir.path());
  const std::string run = JoinPath(dir.path(), "run");
  RunningRun running({"run", file, "run_dir=" + run, "stages=[sft,collect,rm]",
                      "collect.labeller=file"},
                     JoinPath(dir.path(), "run.log"));
  ASSERT_TRUE(Eventually([&run] {
    return Fs::Real().Exists(JoinPath(run, "collect_samples.jsonl"));
  }));
  EXPECT_THAT(Cox({"status", run}, dir.path()).output,
              HasSubstr("waiting for labels"));
  const std::string samples = JoinPath(dir.path(), "samples.jsonl");
  const RunResult exported =
      Cox({"labels", "export", run, samples}, dir.path());
  ASSERT_EQ(exported.exit_code, 0) << exported.output;
  std::string labels;
  int rows = 0;
  const std::string text = Fs::Real().ReadAll(samples).value_or("");
  for (size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) {
    const nlohmann::json row = nlohmann::json::parse(
        text.substr(at, text.find('\n', at) - at), nullptr, false);
    ASSERT_EQ(row["responses"].size(), 4u);
    labels += absl::StrCat("{\"prompt_id\":", row["prompt_id"].get<uint64_t>(),
                           ",\"ranking\":[2,1,3,3]}\n");
    ++rows;
  }
  EXPECT_EQ(rows, 24);
  const std::string ranked = JoinPath(dir.path(), "ranked.jsonl");
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), ranked, "{\"prompt_id\":1}\n").ok());
  EXPECT_EQ(Cox({"labels", "import", run, ranked}, dir.path()).exit_code, 2);
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), ranked, labels).ok());
  const RunResult imported = Cox({"labels", "import", run, ranked}, dir.path());
  ASSERT_EQ(imported.exit_code, 0) << imported.output;
  const RunResult result = running.Wait();
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_TRUE(Fs::Real().Exists(JoinPath(run, "comparisons.jsonl")));
}

// Each role in turn dies by SIGKILL in the middle of ppo; the run must end by
// itself with the bits of an undisturbed one.
struct KillCase {
  const char* victim;
  const char* schedule;  // further YAML
};
class KillTest : public ::testing::TestWithParam<KillCase> {};

constexpr char kFixedLag[] = "schedule: {mode: fixed_lag, lag: 1}\n";

TEST_P(KillTest, RunEndsWithTheSameWeights) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path(), GetParam().schedule);
  const std::string calm = JoinPath(dir.path(), "calm");
  const std::string hurt = JoinPath(dir.path(), "hurt");
  const RunResult a = Cox({"run", file, "run_dir=" + calm}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  RunningRun run({"run", file, "run_dir=" + hurt},
                 JoinPath(dir.path(), "hurt.log"));
  ASSERT_TRUE(ReachesSteps(hurt, 4));
  const pid_t victim = FindProcess(hurt, GetParam().victim);
  ASSERT_NE(victim, 0);
  kill(victim, SIGKILL);
  const RunResult b = run.Wait();
  ASSERT_EQ(b.exit_code, 0) << b.output;
  EXPECT_EQ(CommittedSteps(calm), CommittedSteps(hurt));
  EXPECT_EQ(UnitHashes(calm), UnitHashes(hurt));
  const RunResult ledger = Cox({"ledger", "verify", hurt}, dir.path());
  EXPECT_EQ(ledger.exit_code, 0) << ledger.output;
}

std::string CaseName(const ::testing::TestParamInfo<KillCase>& info) {
  std::string name = info.param.victim;
  std::replace(name.begin(), name.end(), '-', '_');
  return name + (*info.param.schedule == '\0' ? "_sync" : "_fixed_lag");
}

INSTANTIATE_TEST_SUITE_P(EachRole, KillTest,
                         ::testing::Values(KillCase{"actor-0", ""},
                                           KillCase{"reward-0", ""},
                                           KillCase{"learner-0", ""},
                                           KillCase{"learner-1", ""},
                                           KillCase{"coordinator", ""},
                                           KillCase{"learner-0", kFixedLag},
                                           KillCase{"coordinator", kFixedLag}),
                         CaseName);

TEST(RunTest, KilledSupervisorResumesWithTheSameWeights) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string calm = JoinPath(dir.path(), "calm");
  const std::string hurt = JoinPath(dir.path(), "hurt");
  const RunResult a = Cox({"run", file, "run_dir=" + calm}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  {
    RunningRun run({"run", file, "run_dir=" + hurt},
                   JoinPath(dir.path(), "hurt.log"));
    ASSERT_TRUE(ReachesSteps(hurt, 4));
  }  // SIGKILL; the children die with it
  ASSERT_TRUE(Eventually([&hurt] {
    return FindProcess(hurt, "coordinator") == 0 &&
           FindProcess(hurt, "learner-0") == 0;
  }));
  const RunResult b = Cox({"run", file, "run_dir=" + hurt}, dir.path());
  ASSERT_EQ(b.exit_code, 0) << b.output;
  EXPECT_EQ(CommittedSteps(calm), CommittedSteps(hurt));
  EXPECT_EQ(UnitHashes(calm), UnitHashes(hurt));
}

TEST(RunTest, StopDrainsAndTheSameCommandResumes) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string calm = JoinPath(dir.path(), "calm");
  const std::string stopped = JoinPath(dir.path(), "stopped");
  const RunResult a = Cox({"run", file, "run_dir=" + calm}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  RunningRun run({"run", file, "run_dir=" + stopped},
                 JoinPath(dir.path(), "stopped.log"));
  ASSERT_TRUE(ReachesSteps(stopped, 2));
  const RunResult stop = Cox({"stop", stopped}, dir.path());
  ASSERT_EQ(stop.exit_code, 0) << stop.output;
  const RunResult b = run.Wait();
  EXPECT_EQ(b.exit_code, 42) << b.output;
  const RunResult c = Cox({"run", file, "run_dir=" + stopped}, dir.path());
  ASSERT_EQ(c.exit_code, 0) << c.output;
  EXPECT_EQ(CommittedSteps(calm), CommittedSteps(stopped));
}

TEST(RunTest, BadInputIsOneClearLineAndExitTwo) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const RunResult typo = Cox({"run", file, "ppo.kl_coeff=1"}, dir.path());
  EXPECT_EQ(typo.exit_code, 2);
  EXPECT_THAT(typo.output, HasSubstr("did you mean 'kl_coef'"));
  const RunResult missing =
      Cox({"run", JoinPath(dir.path(), "nothing.yaml")}, dir.path());
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_THAT(missing.output, HasSubstr("nothing.yaml"));
  ASSERT_TRUE(WriteFileDurably(Fs::Real(),
                               JoinPath(dir.path(), "prompts.jsonl"),
                               "{\"prompt_ids\":[3,3,3]}\n")
                  .ok());
  const RunResult too_long =
      Cox({"run", file, "run_dir=" + JoinPath(dir.path(), "long")}, dir.path());
  EXPECT_EQ(too_long.exit_code, 2) << too_long.output;
  EXPECT_THAT(too_long.output, HasSubstr("prompts.jsonl:1"));
  ASSERT_TRUE(
      WriteFileDurably(Fs::Real(), JoinPath(dir.path(), "prompts.jsonl"), "")
          .ok());
  const RunResult empty = Cox(
      {"run", file, "run_dir=" + JoinPath(dir.path(), "empty")}, dir.path());
  EXPECT_EQ(empty.exit_code, 2) << empty.output;
}

}  // namespace
}  // namespace cox
