// Ranks are forked processes. The parent never calls LibTorch, so that a fork
// never copies a process that has its threads.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/base/process.h"
#include "lib/base/rng.h"
#include "lib/base/thread.h"
#include "lib/comm/collective.h"
#include "lib/comm/tree_sum.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;

// Far below any group timeout used here except where stated: what takes longer
// has hung.
constexpr absl::Duration kSoon = absl::Seconds(30);
constexpr absl::Duration kGroupTimeout = absl::Minutes(10);

#define CHILD_CHECK(condition)                                              \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);  \
      return 1;                                                             \
    }                                                                       \
  } while (false)
#define CHILD_CHECK_OK(expr)                                          \
  do {                                                                \
    const absl::Status child_status = (expr);                         \
    if (!child_status.ok()) {                                         \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__,         \
                   child_status.ToString().c_str());                  \
      return 1;                                                       \
    }                                                                 \
  } while (false)

// A world whose store listens on a port that the kernel chose.
class World {
 public:
  explicit World(int size) : size_(size) {
    listen_fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    COX_CHECK(bind(listen_fd_, generic, length) == 0);
    COX_CHECK(listen(listen_fd_, 16) == 0);
    COX_CHECK(getsockname(listen_fd_, generic, &length) == 0);
    port_ = ntohs(address.sin_port);
  }
  ~World() {
    for (const pid_t pid : pids_) {
      kill(pid, SIGKILL);
      WaitChild(pid, kSoon);
    }
    close(listen_fd_);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  GlooOptions Options(int rank, absl::Duration timeout) const {
    GlooOptions options;
    options.port = port_;
    options.listen_fd = rank == 0 ? listen_fd_ : -1;
    options.rank = rank;
    options.world_size = size_;
    options.prefix = "g1";
    options.timeout = timeout;
    return options;
  }

  // `body` returns the child's exit code.
  void Start(int rank, absl::Duration timeout,
             const std::function<int(Collective&)>& body) {
    const pid_t pid = fork();
    COX_CHECK(pid >= 0);
    if (pid == 0) {
      InitProcess(/*die_with_parent=*/true);
      auto comm = MakeGloo(Options(rank, timeout));
      if (!comm.ok()) {
        std::fprintf(stderr, "%s\n", comm.status().ToString().c_str());
        _exit(100);
      }
      const int code = body(**comm);
      comm->reset();
      _exit(code);
    }
    pids_.push_back(pid);
  }
  pid_t pid(int rank) const { return pids_[static_cast<size_t>(rank)]; }

  void ExpectExit(int rank, int code) {
    const ChildExit exit = WaitChild(pid(rank), kSoon);
    ASSERT_TRUE(exit.exited) << "rank " << rank << " hangs";
    EXPECT_EQ(exit.signal, 0);
    EXPECT_EQ(exit.code, code);
  }

 private:
  const int size_;
  int listen_fd_;
  int port_;
  std::vector<pid_t> pids_;
};

std::vector<float> RankData(int rank, size_t n) {
  CounterRng rng(static_cast<uint64_t>(rank), "gloo");
  std::vector<float> data(n);
  for (float& x : data) x = static_cast<float>(rng.NextUniform() - 0.5);
  return data;
}

std::vector<float> TreeOfRanks(int world, size_t n) {
  std::vector<std::vector<float>> data;
  std::vector<std::span<float>> parts;
  for (int rank = 0; rank < world; ++rank) data.push_back(RankData(rank, n));
  for (auto& part : data) parts.emplace_back(part);
  TreeSum<float>(parts);
  return data[0];
}

// More than one segment, and not a multiple of one.
constexpr size_t kElements = (size_t{5} << 19) + 7;

int RunAllCollectives(Collective& comm, const std::string& out_path) {
  const int world = comm.world_size();
  std::vector<float> data = RankData(comm.rank(), kElements);
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>(data)));
  const std::vector<float> expected = TreeOfRanks(world, kElements);
  CHILD_CHECK(data == expected);
  std::vector<float> few = RankData(comm.rank(), 1001);
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>(few)));
  CHILD_CHECK(std::equal(few.begin(), few.end(), expected.begin()));
  std::vector<double> wide = {1.0 + comm.rank(), 1e-300};
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<double>(wide)));
  CHILD_CHECK(wide[0] == world * (world + 1) / 2.0);

  // Block r of everybody is elements [r * n, r * n + n) of its data.
  const size_t share = kElements / static_cast<size_t>(world);
  const std::vector<float> raw = RankData(comm.rank(), kElements);
  std::vector<float> block(share);
  CHILD_CHECK_OK(comm.ReduceScatterSum(
      std::span(raw).first(share * static_cast<size_t>(world)), block));
  CHILD_CHECK(std::equal(
      block.begin(), block.end(),
      expected.begin() + static_cast<std::ptrdiff_t>(share) * comm.rank()));

  std::vector<int32_t> mine(kElements, comm.rank());
  std::vector<int32_t> all(kElements * static_cast<size_t>(world));
  CHILD_CHECK_OK(comm.AllGather(std::as_bytes(std::span(mine)),
                                std::as_writable_bytes(std::span(all))));
  for (size_t i = 0; i < all.size(); ++i) {
    CHILD_CHECK(static_cast<size_t>(all[i]) == i / kElements);
  }
  CHILD_CHECK_OK(
      comm.Broadcast(std::as_writable_bytes(std::span(mine)), world - 1));
  CHILD_CHECK(mine.front() == world - 1 && mine.back() == world - 1);
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>()));
  CHILD_CHECK_OK(comm.Barrier());
  CHILD_CHECK_OK(WriteFileDurably(
      Fs::Real(), out_path, Sha256Hex(std::as_bytes(std::span(data)))));
  return 0;
}

class GlooWorldTest : public ::testing::TestWithParam<int> {};

TEST_P(GlooWorldTest, CollectivesAreExactOnAllRanks) {
  const int size = GetParam();
  TempDir dir;
  World world(size);
  const auto path = [&dir](int rank) { return dir.Join(absl::StrCat(rank)); };
  for (int rank = 0; rank < size; ++rank) {
    world.Start(rank, kGroupTimeout, [&path, rank](Collective& comm) {
      return RunAllCollectives(comm, path(rank));
    });
  }
  for (int rank = 0; rank < size; ++rank) world.ExpectExit(rank, 0);
  ASSERT_OK_AND_ASSIGN(const std::string first, Fs::Real().ReadAll(path(0)));
  for (int rank = 1; rank < size; ++rank) {
    EXPECT_THAT(Fs::Real().ReadAll(path(rank)), IsOkAndHolds(first));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, GlooWorldTest, ::testing::Values(2, 3, 4));

int ExpectCode(Collective& comm, absl::StatusCode code) {
  std::vector<float> data(1000, 1.0f);
  const absl::Status status = comm.AllReduceSum(std::span<float>(data));
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  if (status.code() != code) return 1;
  // Dead: the next call fails too, and at once.
  return comm.Barrier().code() == code ? 0 : 2;
}

int Die(Collective&) {
  raise(SIGKILL);
  return 1;
}

int Stop(Collective&) {
  raise(SIGSTOP);
  return 0;
}

TEST(GlooTest, KilledPeerIsAborted) {
  World world(2);
  world.Start(0, kGroupTimeout, [](Collective& comm) {
    return ExpectCode(comm, absl::StatusCode::kAborted);
  });
  world.Start(1, kGroupTimeout, Die);
  world.ExpectExit(0, 0);
}

TEST(GlooTest, KilledStoreHostIsAborted) {
  World world(2);
  world.Start(0, kGroupTimeout, Die);
  world.Start(1, kGroupTimeout, [](Collective& comm) {
    return ExpectCode(comm, absl::StatusCode::kAborted);
  });
  world.ExpectExit(1, 0);
}

TEST(GlooTest, HungPeerIsADeadline) {
  // Long enough for two processes to meet on a loaded machine.
  constexpr absl::Duration kShort = absl::Seconds(3);
  World world(2);
  world.Start(0, kShort, [](Collective& comm) {
    return ExpectCode(comm, absl::StatusCode::kDeadlineExceeded);
  });
  world.Start(1, kGroupTimeout, Stop);
  world.ExpectExit(0, 0);
}

TEST(GlooTest, AbortEndsACallThatHangs) {
  World world(2);
  world.Start(0, kGroupTimeout, [](Collective& comm) {
    Thread other("abort", [&comm] { comm.Abort(); });
    return ExpectCode(comm, absl::StatusCode::kAborted);
  });
  world.Start(1, kGroupTimeout, Stop);
  world.ExpectExit(0, 0);
}

TEST(GlooTest, RankThatNeverComesIsAnError) {
  World world(2);
  // Exit 100: MakeGloo failed.
  world.Start(0, absl::Seconds(1), [](Collective&) { return 0; });
  world.ExpectExit(0, 100);
}

TEST(GlooTest, ImpossibleOptionsAreInvalid) {
  GlooOptions options;
  options.port = 1;
  options.rank = 2;
  options.world_size = 2;
  EXPECT_THAT(MakeGloo(options), StatusIs(absl::StatusCode::kInvalidArgument));
  options.rank = 0;
  options.port = 0;
  EXPECT_THAT(MakeGloo(options), StatusIs(absl::StatusCode::kInvalidArgument));
  options.port = 1;
  options.timeout = absl::InfiniteDuration();
  EXPECT_THAT(MakeGloo(options), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace cox
