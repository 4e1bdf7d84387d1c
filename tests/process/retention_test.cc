// Real processes: units that are given up, payloads and checkpoints that are
// deleted, and a ledger whose log is damaged after a kill.

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "lib/base/fs.h"
#include "tests/process/run_harness.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::TempDir;
using ::testing::HasSubstr;
using ::testing::Not;

// Every actor dies with its eighth unit, and one failure is enough.
TEST(RetentionRun, UnitsGivenUpAndPayloadsRetiredAreProven) {
  TempDir dir;
  const std::string run = JoinPath(dir.path(), "run");
  const std::string file =
      WriteTableTask(dir.path(),
                     "audit: {fraction: 0, poison_after: 1, give_up_after: 1}\n"
                     "log: {keep_payload_bytes: 0}\n");
  setenv("COX_FAILPOINT", "actor.generated:8", 1);
  const RunResult result =
      Cox({"run", file, "run_dir=" + run, "checkpoint.keep_best=1",
           "checkpoint.every=2", "--max-restarts", "500"},
          dir.path());
  unsetenv("COX_FAILPOINT");
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("run: checkpoints: ppo 3 x "));
  const std::string events = LedgerEvents(run);
  EXPECT_THAT(events, HasSubstr("unit given up: unit s0."));
  EXPECT_THAT(events, HasSubstr("retention: segment 1, "));

  const RunResult verify = Cox({"ledger", "verify", run}, dir.path());
  EXPECT_EQ(verify.exit_code, 0) << verify.output;
  EXPECT_THAT(verify.output, HasSubstr(" payloads retired"));
  const RunResult kept = Cox({"ckpt", "ls", run}, dir.path());
  EXPECT_THAT(kept.output, HasSubstr("end of the stage, last"));
  EXPECT_THAT(kept.output, HasSubstr("best objective/scores = "));
  EXPECT_THAT(kept.output, Not(HasSubstr("it has no row")));
  const RunResult gone = Cox({"replay", run, "--step", "1"}, dir.path());
  EXPECT_EQ(gone.exit_code, 2);
  EXPECT_THAT(gone.output, HasSubstr("steps 11 to 12 can be computed again"));
  const RunResult replay = Cox({"replay", run, "--step", "12"}, dir.path());
  EXPECT_EQ(replay.exit_code, 0) << replay.output;
  const RunResult why = Cox({"why", run, "--sample", "s0.1.0"}, dir.path());
  EXPECT_EQ(why.exit_code, 0);
  EXPECT_THAT(why.output, HasSubstr("payload of ppo step 1 retired"));
}

TEST(RetentionRun, ADamagedLogIsPutRightOrToldAfterAKill) {
  TempDir dir;
  const std::string run = JoinPath(dir.path(), "run");
  const std::string file = WriteTableTask(dir.path());
  size_t before = 0;
  {
    RunningRun running({"run", file, "run_dir=" + run, "ppo.steps=2000"},
                       JoinPath(dir.path(), "killed.log"));
    ASSERT_TRUE(Eventually([&] {
      if (FindProcess(run, "learner-0") == 0) return false;
      before = CommittedSteps(run).size();
      return before >= 5;
    }));
    kill(running.pid(), SIGKILL);
    running.Wait();
    ASSERT_TRUE(Eventually([&] { return FindProcess(run, "learner-0") == 0; }));
  }
  const std::string copy = JoinPath(dir.path(), "copy");
  std::filesystem::copy(run, copy, std::filesystem::copy_options::recursive);
  const auto damage = [](const std::string& of, bool sector) {
    const std::string path = JoinPath(of, "ledger.db-wal");
    std::string log = Fs::Real().ReadAll(path).value_or("");
    ASSERT_GT(log.size(), 20000u);
    const size_t at = 32 + 24 + 4120;  // in the second page
    for (size_t i = 0; i < (sector ? 512u : 1u); ++i) {
      log[at + i] = static_cast<char>(log[at + i] ^ (sector ? i * 37 + 1 : 1));
    }
    ASSERT_TRUE(WriteFileDurably(Fs::Real(), path, log).ok());
  };
  damage(copy, /*sector=*/true);
  const RunResult told =
      Cox({"run", file, "run_dir=" + copy, "ppo.steps=2000"}, dir.path());
  EXPECT_EQ(told.exit_code, 43) << told.output;
  EXPECT_THAT(told.output, HasSubstr("Put back ledger.db"));

  damage(run, /*sector=*/false);
  RunningRun resumed({"run", file, "run_dir=" + run, "ppo.steps=2000"},
                     JoinPath(dir.path(), "resumed.log"));
  // Nobody else may open it before it is put right.
  ASSERT_TRUE(Eventually([&] {
    return Fs::Real()
               .ReadAll(JoinPath(run, "logs/coordinator.log"))
               .value_or("")
               .find("put right") != std::string::npos;
  }));
  EXPECT_TRUE(Eventually([&] {
    return FindProcess(run, "learner-0") != 0 &&
           CommittedSteps(run).size() > before + 5;
  }));
}

}  // namespace
}  // namespace cox
