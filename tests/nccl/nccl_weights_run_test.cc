// Real runs whose actors get the policy over the fake NCCL: weights and samples
// must be those of a run over gRPC, whatever happens in a transfer.

#include <cstdlib>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/nccl/nccl_run_fixture.h"

namespace cox {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class NcclWeightsRunTest : public NcclRunFixture {
 protected:
  std::string ActorLogs(const std::string& run) const {
    return Log(run, "actor-0") + Log(run, "actor-1");
  }
  RunResult Run(const std::string& name, const std::string& transport) {
    return Cox({"run", file_, "run_dir=" + Path(name), "roles.actors=2",
                "roles.weight_transport=" + transport,
                "limits.weight_group_timeout_s=3"},
               dir_.path());
  }
  void ExpectTheSame(const std::string& a, const std::string& b) const {
    EXPECT_EQ(CommittedSteps(Path(a)), CommittedSteps(Path(b)));
    EXPECT_EQ(UnitHashes(Path(a)), UnitHashes(Path(b)));
  }
};

TEST_F(NcclWeightsRunTest, LeavesWhatARunOverGrpcLeavesWhateverHappens) {
  const RunResult grpc = Run("grpc", "grpc");
  ASSERT_EQ(grpc.exit_code, 0) << grpc.output;
  EXPECT_THAT(Log("grpc", "learner-0"), Not(HasSubstr("weight group")));
  const RunResult calm = Run("calm", "nccl");
  ASSERT_EQ(calm.exit_code, 0) << calm.output;
  EXPECT_GE(CommittedSteps(Path("calm")).size(), 4u);
  ExpectTheSame("grpc", "calm");
  EXPECT_THAT(Log("calm", "learner-0"), HasSubstr("weight group"));
  EXPECT_THAT(ActorLogs("calm"), Not(HasSubstr("fetching over gRPC")));

  // An actor dies in the second transfer, of two calls each: names, bytes.
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), Path("fault"),
                               "rank=1 call=3 fault=halfway\n")
                  .ok());
  setenv("COX_FAKE_NCCL", ("@" + Path("fault")).c_str(), 1);
  const RunResult hurt = Run("hurt", "nccl");
  ASSERT_EQ(hurt.exit_code, 0) << hurt.output;
  EXPECT_FALSE(Fs::Real().Exists(Path("fault"))) << "nobody died";
  ExpectTheSame("grpc", "hurt");
  EXPECT_THAT(Log("hurt", "learner-0"), HasSubstr("weight group failed"));
  // Still the first learner group.
  EXPECT_THAT(LedgerEvents(Path("hurt")), Not(HasSubstr("generation 2")));
  unsetenv("COX_FAKE_NCCL");

  // A bit flips on the way: found, named, fetched over gRPC.
  ASSERT_TRUE(
      WriteFileDurably(Fs::Real(), Path("flip"), "weights.bucket:2:flip\n")
          .ok());
  setenv("COX_FAILPOINT", ("@" + Path("flip")).c_str(), 1);
  const RunResult flipped = Run("flipped", "nccl");
  ASSERT_EQ(flipped.exit_code, 0) << flipped.output;
  EXPECT_FALSE(Fs::Real().Exists(Path("flip"))) << "nothing was flipped";
  ExpectTheSame("grpc", "flipped");
  EXPECT_THAT(ActorLogs("flipped"), HasSubstr("DATA_LOSS"));
  EXPECT_EQ(Misuses(), "");
}

// Without a GPU: one line that says so, exit 2.
TEST_F(NcclWeightsRunTest, WhatIsMissingIsOneLineAndExit2) {
  setenv("COX_NCCL", Path("libnccl.so.2").c_str(), 1);
  const RunResult run = Run("run", "nccl");
  EXPECT_EQ(run.exit_code, 2) << run.output;
  EXPECT_THAT(ActorLogs("run") + Log("run", "learner-0") + run.output,
              HasSubstr("roles.weight_transport nccl: NCCL: cannot load " +
                        Path("libnccl.so.2")));
}

}  // namespace
}  // namespace cox
