// Real runs whose learner ranks meet over the fake NCCL: the weights must be
// those of Gloo, whatever happens to a rank.

#include <csignal>
#include <cstdlib>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "tests/nccl/nccl_run_fixture.h"

namespace cox {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class NcclRunTest : public NcclRunFixture {
 protected:
  std::string LearnerLogs(const std::string& run) const {
    return Log(run, "learner-0") + Log(run, "learner-1");
  }
  RunResult Run(const std::string& name, std::vector<std::string> more) {
    std::vector<std::string> words = {"run", file_, "run_dir=" + Path(name)};
    words.insert(words.end(), more.begin(), more.end());
    return Cox(words, dir_.path());
  }
};

TEST_F(NcclRunTest, LeavesTheWeightsOfGlooAndSurvivesALostRank) {
  const RunResult gloo = Run("gloo", {"roles.collective=gloo"});
  ASSERT_EQ(gloo.exit_code, 0) << gloo.output;
  const RunResult calm = Run("calm", {"roles.collective=nccl"});
  ASSERT_EQ(calm.exit_code, 0) << calm.output;
  EXPECT_EQ(CommittedSteps(Path("gloo")), CommittedSteps(Path("calm")));
  EXPECT_GE(CommittedSteps(Path("calm")).size(), 4u);
  EXPECT_THAT(LedgerEvents(Path("calm")), HasSubstr("generation 1"));

  // A rank dies in the middle of a message; the group meets again.
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), Path("fault"),
                               "rank=1 call=25 fault=halfway\n")
                  .ok());
  setenv("COX_FAKE_NCCL", ("@" + Path("fault")).c_str(), 1);
  const RunResult hurt = Run("hurt", {"roles.collective=nccl"});
  ASSERT_EQ(hurt.exit_code, 0) << hurt.output;
  EXPECT_FALSE(Fs::Real().Exists(Path("fault"))) << "nobody died";
  EXPECT_THAT(LedgerEvents(Path("hurt")), HasSubstr("generation 2"));
  EXPECT_EQ(CommittedSteps(Path("gloo")), CommittedSteps(Path("hurt")));
  EXPECT_EQ(UnitHashes(Path("gloo")), UnitHashes(Path("hurt")));
  EXPECT_EQ(Misuses(), "");
}

// Without the library, the driver or a GPU: one line that says which, exit 2.
TEST_F(NcclRunTest, WhatIsMissingIsOneLineAndExit2) {
  setenv("COX_NCCL", Path("libnccl.so.2").c_str(), 1);
  const RunResult library = Run("library", {"roles.collective=nccl"});
  EXPECT_EQ(library.exit_code, 2) << library.output;
  EXPECT_THAT(LearnerLogs("library") + library.output,
              HasSubstr("NCCL: cannot load " + Path("libnccl.so.2")));
  UseFakes();
  setenv("COX_FAKE_CUDA_DEVICES", "-1", 1);
  const RunResult driver = Run("driver", {"roles.collective=nccl"});
  EXPECT_EQ(driver.exit_code, 2) << driver.output;
  EXPECT_THAT(LearnerLogs("driver") + driver.output,
              HasSubstr("no NVIDIA driver"));
}

}  // namespace
}  // namespace cox
