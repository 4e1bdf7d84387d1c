#include "lib/base/process.h"

#include <signal.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;

constexpr absl::Duration kLong = absl::Seconds(30);

TEST(ExitCodeTest, MapsCodes) {
  EXPECT_EQ(ExitCodeFor(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeFor(absl::DataLossError("")), 43);
  EXPECT_EQ(ExitCodeFor(absl::InvalidArgumentError("")), 2);
  EXPECT_EQ(ExitCodeFor(absl::NotFoundError("")), 2);
  EXPECT_EQ(ExitCodeFor(absl::UnavailableError("")), 42);
  EXPECT_EQ(ExitCodeFor(absl::InternalError("")), 42);
}

TEST(SpawnChildTest, ReportsExitCodeAndAppendsToLog) {
  TempDir dir;
  ChildOptions options;
  options.argv = {"/bin/sh", "-c", "echo \"$COX_X\"; echo err >&2; exit 7"};
  options.extra_env = {{"COX_X", "a b"}};
  options.log_path = dir.Join("log");
  for (int run = 0; run < 2; ++run) {
    ASSERT_OK_AND_ASSIGN(const pid_t pid, SpawnChild(options));
    const ChildExit exit = WaitChild(pid, kLong);
    EXPECT_TRUE(exit.exited);
    EXPECT_EQ(exit.code, 7);
    EXPECT_EQ(exit.signal, 0);
  }
  EXPECT_THAT(Fs::Real().ReadAll(options.log_path),
              IsOkAndHolds("a b\nerr\na b\nerr\n"));
}

TEST(SpawnChildTest, SignalReachesTheWholeGroup) {
  ChildOptions options;
  // The inner sleep holds the group too; only a group signal ends both.
  options.argv = {"/bin/sh", "-c", "sleep 600; true"};
  ASSERT_OK_AND_ASSIGN(const pid_t pid, SpawnChild(options));
  EXPECT_FALSE(PollChild(pid).exited);
  SignalChild(pid, SIGKILL);
  const ChildExit exit = WaitChild(pid, kLong);
  EXPECT_TRUE(exit.exited);
  EXPECT_EQ(exit.signal, SIGKILL);
  // Reaped: a second poll still says "gone".
  EXPECT_TRUE(PollChild(pid).exited);
}

TEST(SpawnChildTest, MissingBinaryIsNotFound) {
  ChildOptions options;
  options.argv = {"/nonexistent/program"};
  EXPECT_THAT(SpawnChild(options), StatusIs(absl::StatusCode::kNotFound));
  options.argv = {"/etc/passwd"};
  EXPECT_THAT(SpawnChild(options), StatusIs(absl::StatusCode::kInternal));
  options.argv = {};
  EXPECT_THAT(SpawnChild(options),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ExecutableDirTest, ContainsThisTest) {
  EXPECT_TRUE(
      Fs::Real().Exists(JoinPath(ExecutableDir(), "base_process_test")));
}

// In a forked process, because the flag cannot be taken back.
TEST(ShutdownTest, SigtermSetsTheFlagAndEndsSleep) {
  const auto in_child = [] {
    InitProcess(/*die_with_parent=*/true);
    if (ShutdownRequested()) _exit(1);
    if (SleepUnlessShutdown(absl::Milliseconds(1))) _exit(2);
    raise(SIGTERM);
    if (!ShutdownRequested()) _exit(3);
    if (!SleepUnlessShutdown(absl::InfiniteDuration())) _exit(4);
    _exit(0);
  };
  EXPECT_EXIT(in_child(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace cox
