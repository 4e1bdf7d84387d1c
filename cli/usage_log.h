#ifndef COX_CLI_USAGE_LOG_H_
#define COX_CLI_USAGE_LOG_H_

// The memory of a run's processes, for usage.json.

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cli/usage_sample.h"
#include "lib/base/clock.h"

namespace cox {

// Largest values so far. Thread-compatible.
class UsageLog {
 public:
  // `usage_of` is UsageOf, or a test's.
  explicit UsageLog(std::function<ProcessUsage(pid_t)> usage_of);

  // At most once a second; reads a small file of each process. Number 0 = not
  // running.
  void Look(const std::vector<std::pair<std::string, pid_t>>& processes,
            MonoTime now);
  // {"schema": "cox.usage/1", "peak_private_bytes": of all together at one
  // time, "processes": {name: {"private_bytes", "resident_bytes"}}}
  std::string Json() const;

 private:
  const std::function<ProcessUsage(pid_t)> usage_of_;
  MonoTime last_;
  std::map<std::string, ProcessUsage> largest_;
  int64_t peak_private_bytes_ = 0;
};

}  // namespace cox

#endif  // COX_CLI_USAGE_LOG_H_
