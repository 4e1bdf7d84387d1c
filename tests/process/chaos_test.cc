// `cox chaos` on the smallest task: real kills of real processes. The long
// campaigns are run by hand (docs/results.md).

#include <signal.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
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

struct Campaign {
  RunResult result;
  nlohmann::json json;
};

Campaign Chaos(const TempDir& dir, std::vector<std::string> more) {
  std::vector<std::string> words = {
      "chaos",  WriteTableTask(dir.path()),
      "--dir",  JoinPath(dir.path(), "chaos"),
      "--json", JoinPath(dir.path(), "chaos.json")};
  words.insert(words.end(), more.begin(), more.end());
  Campaign campaign;
  campaign.result = Cox(words, dir.path(), absl::Minutes(10));
  campaign.json = nlohmann::json::parse(
      Fs::Real().ReadAll(JoinPath(dir.path(), "chaos.json")).value_or("{}"),
      nullptr, false);
  return campaign;
}

int Delivered(const nlohmann::json& json, const std::string& kind) {
  int delivered = 0;
  for (const auto& row : json.value("faults", nlohmann::json::array())) {
    if (row["kind"] == kind) delivered += row["delivered"].get<int>();
  }
  return delivered;
}

TEST(ChaosTest, TwentyKillsOverAllRolesLeaveTheSameWeights) {
  TempDir dir;
  const Campaign c =
      Chaos(dir, {"--kills", "20", "--seed", "5", "ppo.steps=40"});
  EXPECT_EQ(c.result.exit_code, 0) << c.result.output;
  EXPECT_EQ(Delivered(c.json, "kill"), 20);
  EXPECT_EQ(c.json["unexplained_ends"], 0) << c.result.output;
  EXPECT_THAT(c.result.output, HasSubstr("equal"));
}

TEST(ChaosTest, StreamingTrainsEveryUnitAtMostOnce) {
  TempDir dir;
  const Campaign c = Chaos(dir, {"--kills", "5", "--seed", "2", "--mode",
                                 "streaming", "ppo.steps=40"});
  EXPECT_EQ(c.result.exit_code, 0) << c.result.output;
  EXPECT_EQ(Delivered(c.json, "kill"), 5);
}

TEST(ChaosTest, OtherFaultsLeaveTheSameWeightsToo) {
  TempDir dir;
  const Campaign c = Chaos(
      dir, {"--kills", "1", "--seed", "3", "--faults", "slow,corrupt,enospc",
            "ppo.steps=40", "limits.rpc_max_backoff_s=0.5"});
  EXPECT_EQ(c.result.exit_code, 0) << c.result.output;
  EXPECT_EQ(Delivered(c.json, "corrupt"), 1);
  EXPECT_EQ(Delivered(c.json, "enospc"), 1);
}

// A run that goes wrong must be noticed: this one is started with another
// learning rate behind the undisturbed run's back.
TEST(ChaosTest, ADifferenceIsFoundAndNamed) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string work = JoinPath(dir.path(), "chaos");
  const std::vector<std::string> words = {"chaos",   file, "--dir",   work,
                                          "--kills", "1",  "--roles", "reward"};
  const RunResult first = Cox(words, dir.path());
  ASSERT_EQ(first.exit_code, 0) << first.output;
  std::string calm;
  const auto names = Fs::Real().List(work);
  ASSERT_TRUE(names.ok());
  for (const std::string& name : *names) {
    if (name.starts_with("calm-")) calm = JoinPath(work, name);
  }
  ASSERT_FALSE(calm.empty());
  const RunResult other =
      Cox({"run", file, "run_dir=" + calm + "-other", "ppo.kl_coef=0.5"},
          dir.path());
  ASSERT_EQ(other.exit_code, 0) << other.output;
  ASSERT_TRUE(Fs::Real().RemoveAll(calm).ok());
  ASSERT_TRUE(Fs::Real().Rename(calm + "-other", calm).ok());
  const RunResult second = Cox(words, dir.path());
  EXPECT_EQ(second.exit_code, 1) << second.output;
  EXPECT_THAT(second.output, HasSubstr("expected weights"));
}

// A rank that stands still ends its generation for all; the group starts again
// by itself.
TEST(WatchdogTest, StoppedLearnerRankIsOvercome) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string calm = JoinPath(dir.path(), "calm");
  const std::string hurt = JoinPath(dir.path(), "hurt");
  const RunResult a = Cox({"run", file, "run_dir=" + calm}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  RunningRun run(
      {"run", file, "run_dir=" + hurt, "limits.collective_timeout_s=2",
       "limits.coordinator_patience_s=2"},
      JoinPath(dir.path(), "hurt.log"));
  ASSERT_TRUE(Eventually([&] {
    return Fs::Real().Exists(JoinPath(hurt, "ledger.db")) &&
           FindProcess(hurt, "learner-1") != 0 &&
           CommittedSteps(hurt).size() >= 4;
  }));
  const pid_t victim = FindProcess(hurt, "learner-1");
  ASSERT_NE(victim, 0);
  kill(victim, SIGSTOP);
  // Meanwhile somebody can be seen to wait.
  EXPECT_TRUE(Eventually([&] {
    return Cox({"stuck", hurt}, dir.path()).output.find("learner-0 ") !=
           std::string::npos;
  }));
  const RunResult b = run.Wait();
  kill(victim, SIGKILL);
  ASSERT_EQ(b.exit_code, 0) << b.output;
  EXPECT_EQ(CommittedSteps(calm), CommittedSteps(hurt));
  EXPECT_EQ(UnitHashes(calm), UnitHashes(hurt));
}

// Runs with `point` armed in a file that one process takes; the events of the
// run afterwards.
std::string RunArmed(const TempDir& dir, const std::string& point,
                     std::vector<std::string> more, RunResult* result) {
  const std::string run = JoinPath(dir.path(), "armed");
  const std::string arm = JoinPath(dir.path(), "arm");
  EXPECT_TRUE(WriteFileDurably(Fs::Real(), arm, point).ok());
  setenv("COX_FAILPOINT", ("@" + arm).c_str(), 1);
  std::vector<std::string> words = {"run", JoinPath(dir.path(), "run.yaml"),
                                    "run_dir=" + run};
  words.insert(words.end(), more.begin(), more.end());
  *result = Cox(words, dir.path());
  unsetenv("COX_FAILPOINT");
  EXPECT_FALSE(Fs::Real().Exists(arm)) << point << " was not passed";
  return LedgerEvents(run);
}

TEST(AttestationTest, AFlippedBitInMemoryIsNamedByTensor) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string calm = JoinPath(dir.path(), "calm");
  const RunResult a = Cox({"run", file, "run_dir=" + calm}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  RunResult b;
  const std::string events = RunArmed(dir, "actor.memory:2:flip\n", {}, &b);
  ASSERT_EQ(b.exit_code, 0) << b.output;
  EXPECT_THAT(events, HasSubstr("weights damaged"));
  EXPECT_THAT(events, HasSubstr("tensor '"));
  // No token was sampled from them.
  EXPECT_EQ(UnitHashes(calm), UnitHashes(JoinPath(dir.path(), "armed")));
}

TEST(AttestationTest, AWrongResultIsOutvotedAndItsActorShutOut) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string calm = JoinPath(dir.path(), "calm");
  const RunResult a = Cox({"run", file, "run_dir=" + calm}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  RunResult b;
  const std::string events = RunArmed(
      dir, "actor.result:5:flip\n", {"audit.fraction=1", "roles.actors=3"}, &b);
  ASSERT_EQ(b.exit_code, 0) << b.output;
  EXPECT_THAT(events, HasSubstr("quarantine"));
  EXPECT_EQ(CommittedSteps(calm),
            CommittedSteps(JoinPath(dir.path(), "armed")));
}

TEST(AttestationTest, ALearnerRankThatDriftsIsNoticed) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string calm = JoinPath(dir.path(), "calm");
  const RunResult a = Cox({"run", file, "run_dir=" + calm}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  RunResult b;
  RunArmed(dir, "learner.memory:5:flip\n", {"audit.replicas_every=1"}, &b);
  ASSERT_EQ(b.exit_code, 0) << b.output;
  EXPECT_EQ(CommittedSteps(calm),
            CommittedSteps(JoinPath(dir.path(), "armed")));
}

// An actor started by hand joins a live run and leaves on SIGTERM.
TEST(ElasticTest, AnActorJoinsAndLeavesWithoutLoss) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string calm = JoinPath(dir.path(), "calm");
  const std::string run = JoinPath(dir.path(), "run");
  const RunResult a =
      Cox({"run", file, "run_dir=" + calm, "ppo.steps=40"}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  RunningRun running({"run", file, "run_dir=" + run, "ppo.steps=40",
                      "roles.actors=1", "audit.fraction=0"},
                     JoinPath(dir.path(), "run.log"));
  ASSERT_TRUE(Eventually(
      [&run] { return Fs::Real().Exists(JoinPath(run, "endpoints.json")); }));
  const std::string log = JoinPath(dir.path(), "guest.log");
  RunningRun guest(RunningRun::Program("cox-actor"),
                   {"--coordinator", "file:" + JoinPath(run, "endpoints.json"),
                    "--name", "guest"},
                   log);
  EXPECT_TRUE(Eventually([&log] {
    return Fs::Real().ReadAll(log).value_or("").find("policy loaded") !=
           std::string::npos;
  }));
  kill(guest.pid(), SIGTERM);
  EXPECT_EQ(guest.Wait(absl::Seconds(30)).exit_code, 0);
  EXPECT_EQ(running.Wait().exit_code, 0);
  EXPECT_EQ(CommittedSteps(calm), CommittedSteps(run));
}

TEST(ElasticTest, ScaleStartsAndRetiresProcesses) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string calm = JoinPath(dir.path(), "calm");
  const std::string run = JoinPath(dir.path(), "run");
  const RunResult a =
      Cox({"run", file, "run_dir=" + calm, "ppo.steps=60"}, dir.path());
  ASSERT_EQ(a.exit_code, 0) << a.output;
  RunningRun running(
      {"run", file, "run_dir=" + run, "ppo.steps=60", "audit.fraction=0"},
      JoinPath(dir.path(), "run.log"));
  ASSERT_TRUE(Eventually([&run] { return FindProcess(run, "actor-1") != 0; }));
  // Pausing keeps the run from ending before it was scaled.
  ASSERT_TRUE(Eventually([&] {
    return Cox({"pause", run}, dir.path()).exit_code == 0;
  }));
  EXPECT_EQ(Cox({"scale", run, "learner=3"}, dir.path()).exit_code, 2);
  ASSERT_EQ(Cox({"scale", run, "actor=3"}, dir.path()).exit_code, 0);
  ASSERT_EQ(Cox({"scale", run, "reward=2"}, dir.path()).exit_code, 0);
  EXPECT_TRUE(Eventually([&run] {
    return FindProcess(run, "actor-2") != 0 &&
           FindProcess(run, "reward-1") != 0;
  }));
  ASSERT_EQ(Cox({"scale", run, "actor=1"}, dir.path()).exit_code, 0);
  EXPECT_TRUE(Eventually([&run] {
    return FindProcess(run, "actor-1") == 0 && FindProcess(run, "actor-2") == 0;
  }));
  ASSERT_EQ(Cox({"resume", run}, dir.path()).exit_code, 0);
  EXPECT_EQ(running.Wait().exit_code, 0);
  EXPECT_EQ(CommittedSteps(calm), CommittedSteps(run));
}

}  // namespace
}  // namespace cox
