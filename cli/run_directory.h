#ifndef COX_CLI_RUN_DIRECTORY_H_
#define COX_CLI_RUN_DIRECTORY_H_

// Where things lie in a run directory (docs/architecture.md), and how to reach
// the run's coordinator.

#include <cstdint>
#include <string>

#include "lib/base/status.h"

namespace cox {

struct Endpoints {
  std::string coordinator;  // host:port
  std::string http;         // host:port
  std::string run_id;
  int64_t pid = 0;
  std::string state;  // "serving", "done" (all stages), "stopped"
};

// Reads <run_dir>/endpoints.json. NOT_FOUND says that this is no run directory
// or that the run never started.
absl::StatusOr<Endpoints> ReadEndpoints(const std::string& run_dir);

// An exclusive lock on the directory, held by the one `cox run` that drives it.
// INVALID_ARGUMENT when another process holds it.
class RunLock {
 public:
  static absl::StatusOr<RunLock> Acquire(const std::string& run_dir);
  RunLock(RunLock&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  RunLock& operator=(RunLock&&) = delete;
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock();

 private:
  explicit RunLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace cox

#endif  // COX_CLI_RUN_DIRECTORY_H_
