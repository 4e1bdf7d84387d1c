#ifndef COX_CLI_USAGE_SAMPLE_H_
#define COX_CLI_USAGE_SAMPLE_H_

// CPU time and memory of a process, from /proc.

#include <sys/types.h>

#include <cstdint>

namespace cox {

struct ProcessUsage {
  double cpu_s = 0;           // of all its threads since it started
  int64_t rss_bytes = 0;      // resident now
  int64_t private_bytes = 0;  // of rss_bytes, what belongs to no file
  int64_t pss_bytes = 0;  // the same, shared pages divided among their users
};

// Zeros for a process that is gone. `with_pss` walks the page tables, which
// takes milliseconds.
ProcessUsage UsageOf(pid_t pid, bool with_pss = false);

}  // namespace cox

#endif  // COX_CLI_USAGE_SAMPLE_H_
