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
#include "tests/comm/rank_checks.h"
#include "tests/testing/temp_dir.h"

namespace cox {

// Exit codes of a child whose group did not form.
inline constexpr int kNoGroup = 100;        // ABORTED
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
  using UnmetBody = std::function<int(const NcclOptions&)>;

  explicit NcclWorld(int size);
  ~NcclWorld();
  NcclWorld(const NcclWorld&) = delete;
  NcclWorld& operator=(const NcclWorld&) = delete;

  // Ranks are started in order. `body` returns the child's exit code.
  void Start(int rank, const Settings& settings, const Body& body);
  void StartAll(const Settings& settings, const Body& body);
  // The same for a body that meets the others itself: it gets what it needs.
  void StartUnmet(int rank, const Settings& settings, const UnmetBody& body);
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

}  // namespace cox

#endif  // COX_TESTS_NCCL_NCCL_WORLD_H_
