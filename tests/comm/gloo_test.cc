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
#include "lib/base/thread.h"
#include "lib/comm/collective.h"
#include "tests/comm/rank_checks.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;

constexpr absl::Duration kGroupTimeout = absl::Minutes(10);

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

// More than one segment, and not a multiple of one.
constexpr size_t kElements = (size_t{5} << 19) + 7;

class GlooWorldTest : public ::testing::TestWithParam<int> {};

TEST_P(GlooWorldTest, CollectivesAreExactOnAllRanks) {
  const int size = GetParam();
  TempDir dir;
  World world(size);
  const auto path = [&dir](int rank) { return dir.Join(absl::StrCat(rank)); };
  for (int rank = 0; rank < size; ++rank) {
    world.Start(rank, kGroupTimeout, [&path, rank](Collective& comm) {
      return RunAllCollectives(comm, kElements, path(rank));
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
