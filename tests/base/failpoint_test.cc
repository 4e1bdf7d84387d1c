#include "lib/base/failpoint.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using cox::testing::TempDir;

// Passes `name` `times` times in a process of its own whose environment names
// `spec`; the exit code is the number of the passage that acted, 0 = none, or
// -1 when it was killed. (The environment is read at the first passage.)
int Pass(const std::string& spec, const std::string& name, int times) {
  const pid_t pid = fork();
  if (pid == 0) {
    setenv("COX_FAILPOINT", spec.c_str(), 1);
    for (int i = 1; i <= times; ++i) {
      if (internal::HitFailpoint(name) != FailAction::kNone) _exit(i);
    }
    _exit(0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return WIFSIGNALED(status) ? -1 : WEXITSTATUS(status);
}

TEST(FailpointTest, InertWithoutTheEnvironment) {
  EXPECT_FALSE(internal::failpoints_on);
  EXPECT_EQ(HitFailpoint("a"), FailAction::kNone);
  EXPECT_TRUE(FailpointStatus("a").ok());
}

TEST(FailpointTest, ActsAtTheNamedPassageOnly) {
  EXPECT_EQ(Pass("a:3:enospc", "a", 5), 3);
  EXPECT_EQ(Pass("a:3:enospc", "b", 5), 0);
  EXPECT_EQ(Pass("a:2", "a", 5), -1) << "kill is the default";
  for (const char* bad : {"", "a", "a:0", "a:x", ":1", "a:1:eio:2"}) {
    EXPECT_EQ(Pass(bad, "a", 5), 0) << bad;
  }
}

TEST(FailpointTest, AFileActsOnceForAllProcesses) {
  TempDir dir;
  const std::string path = JoinPath(dir.path(), "arm");
  const std::string spec = "@" + path;
  EXPECT_EQ(Pass(spec, "a", 3), 0) << "nothing is armed";
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), path, "a:2:flip#1\n").ok());
  EXPECT_EQ(Pass(spec, "b", 3), 0);
  EXPECT_EQ(Pass(spec, "a", 3), 2);
  EXPECT_FALSE(Fs::Real().Exists(path));
  EXPECT_EQ(Pass(spec, "a", 3), 0) << "once";
}

TEST(FailpointTest, NamesAreDistinct) {
  std::set<std::string_view> names;
  for (const FailpointName& point : KillFailpoints()) {
    EXPECT_TRUE(names.insert(point.name).second) << point.name;
  }
}

}  // namespace
}  // namespace cox
