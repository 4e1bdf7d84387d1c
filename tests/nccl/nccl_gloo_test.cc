// NCCL (its fake) and Gloo leave the same bits.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>

#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/base/process.h"
#include "tests/nccl/nccl_world.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

constexpr size_t kElements = 300007;

// Everything that a learner sums, in one hash.
int SumAndWrite(Collective& comm, const std::string& path) {
  std::vector<float> data = RankData(comm.rank(), kElements);
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>(data)));
  std::vector<float> few = RankData(comm.rank(), 1001);
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>(few)));
  std::vector<double> wide(few.begin(), few.end());
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<double>(wide)));
  const auto world = static_cast<size_t>(comm.world_size());
  const std::vector<float> raw = RankData(comm.rank(), 5000 * world);
  std::vector<float> block(5000);
  CHILD_CHECK_OK(comm.ReduceScatterSum(raw, block));
  std::vector<float> all(5000 * world);
  CHILD_CHECK_OK(comm.AllGather(std::as_bytes(std::span(block)),
                                std::as_writable_bytes(std::span(all))));
  Sha256 hash;
  hash.Update(std::as_bytes(std::span(data)));
  hash.Update(std::as_bytes(std::span(few)));
  hash.Update(std::as_bytes(std::span(wide)));
  hash.Update(std::as_bytes(std::span(all)));
  CHILD_CHECK_OK(WriteFileDurably(Fs::Real(), path, hash.HexDigest()));
  return 0;
}

void RunGloo(int size, const std::string& dir) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(bind(listener, generic, length), 0);
  ASSERT_EQ(listen(listener, 16), 0);
  ASSERT_EQ(getsockname(listener, generic, &length), 0);
  std::vector<pid_t> pids;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      InitProcess(/*die_with_parent=*/true);
      GlooOptions options;
      options.port = ntohs(address.sin_port);
      options.listen_fd = rank == 0 ? listener : -1;
      options.rank = rank;
      options.world_size = size;
      options.prefix = "g1";
      auto comm = MakeGloo(options);
      if (!comm.ok()) _exit(kNoGroup);
      _exit(SumAndWrite(**comm, JoinPath(dir, absl::StrCat("gloo-", rank))));
    }
    pids.push_back(pid);
  }
  for (const pid_t pid : pids) {
    const ChildExit exit = WaitChild(pid, kSoon);
    EXPECT_TRUE(exit.exited && exit.signal == 0 && exit.code == 0);
  }
  close(listener);
}

class NcclGlooTest : public ::testing::TestWithParam<int> {};

TEST_P(NcclGlooTest, LeaveTheSameBits) {
  const int size = GetParam();
  NcclWorld world(size);
  NcclWorld::Settings settings;
  settings.bucket_bytes = 1 << 16;
  settings.env = {{"COX_FAKE_NCCL_ORDER", "ring"}};
  world.StartAll(settings, [&world](NcclCollective& comm) {
    return SumAndWrite(
        comm, JoinPath(world.dir(), absl::StrCat("nccl-", comm.rank())));
  });
  world.ExpectAllExit(0);
  RunGloo(size, world.dir());
  ASSERT_OK_AND_ASSIGN(const std::string first,
                       Fs::Real().ReadAll(JoinPath(world.dir(), "gloo-0")));
  EXPECT_EQ(first.size(), 64u);
  for (int rank = 0; rank < size; ++rank) {
    for (const char* kind : {"gloo-", "nccl-"}) {
      EXPECT_EQ(Fs::Real()
                    .ReadAll(JoinPath(world.dir(), absl::StrCat(kind, rank)))
                    .value_or(""),
                first)
          << kind << rank;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, NcclGlooTest, ::testing::Values(2, 3, 4));

}  // namespace
}  // namespace cox
