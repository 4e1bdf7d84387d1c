#ifndef COX_TESTS_NCCL_NCCL_WORLD_H_
#define COX_TESTS_NCCL_NCCL_WORLD_H_

// A group of ranks as forked processes on the fake NCCL. The parent loads
// nothing, so that a fork never copies a process that has its threads.

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lib/comm/nccl.h"
#include "tests/testing/temp_dir.h"

namespace cox {

// Far above any timeout used here: what takes longer has hung.
inline constexpr absl::Duration kSoon = absl::Seconds(30);

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

// Exit codes of a child whose group did not form.
inline constexpr int kNoGroup = 100;       // ABORTED
inline constexpr int kNoGroupInTime = 101;  // DEADLINE_EXCEEDED
inline constexpr int kNoGroupOther = 102;

// Folder of libnccl_fake.so and libcudart_fake.so.
std::string FakeLibraries();
// Makes this process load the fakes.
void UseFakes();

class NcclWorld {
 public:
  struct Settings {
    absl::Duration timeout = absl::Minutes(5);
    size_t bucket_bytes = 4096;
    bool tree_order = true;
    std::string group = "run/g1";
    std::map<std::string, std::string> env = {};  // of the fakes
  };
  using Body = std::function<int(NcclCollective&)>;

  explicit NcclWorld(int size);
  ~NcclWorld();
  NcclWorld(const NcclWorld&) = delete;
  NcclWorld& operator=(const NcclWorld&) = delete;

  // Ranks are started in order. `body` returns the child's exit code.
  void Start(int rank, const Settings& settings, const Body& body);
  void StartAll(const Settings& settings, const Body& body);
  pid_t pid(int rank) const { return pids_[static_cast<size_t>(rank)]; }
  void ExpectExit(int rank, int code);
  // Every rank ends without a group, the first ones because the time is over;
  // their end may reach the others as an error before their own deadline.
  void ExpectNobodyMeets();
  void ExpectKilled(int rank);
  void ExpectAllExit(int code);
  // What the fakes found wrong, a line each.
  std::string Misuses() const;
  const std::string& dir() const { return dir_.path(); }

 private:
  const int size_;
  testing::TempDir dir_;
  int listen_fd_;
  std::vector<pid_t> pids_;
};

// Deterministic, with many bits, different on every rank.
std::vector<float> RankData(int rank, size_t n);
// What a sum over `world` ranks must leave (lib/comm/tree_sum.h).
std::vector<float> TreeOfRanks(int world, size_t n);

}  // namespace cox

#endif  // COX_TESTS_NCCL_NCCL_WORLD_H_
