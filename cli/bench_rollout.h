#ifndef COX_CLI_BENCH_ROLLOUT_H_
#define COX_CLI_BENCH_ROLLOUT_H_

// One rollout measurement of `cox bench rpc`: a coordinator process, simulated
// actors and a learner that trains nothing, all over real gRPC.

#include <cstdint>
#include <string>
#include <vector>

#include "lib/base/status.h"

namespace cox {

struct RolloutBenchOptions {
  int actors = 1;
  double service_time_s = 1;
  int samples_per_message = 64;
  int64_t payload = 0;  // bytes of a unit, about; 0 = 24-token answers
  double seconds = 10;  // of the window
  std::string mode = "streaming";  // or "fixed_lag"
  std::string dir = ".";           // for the run directory
  bool keep = false;               // leave it there
  uint64_t seed = 1;
};

struct RolloutBenchResult {
  double samples_s = 0;
  int64_t window_samples = 0;
  double window_s = 0;
  std::vector<double> ack_us;
  std::vector<double> lease_us;
  double coordinator_cpu_s = 0;       // in the window
  double own_cpu_s = 0;               // of actors and learner, in the window
  int64_t coordinator_rss_bytes = 0;  // at the end of the window
  double coordinator_rss_bytes_per_actor = 0;
  int64_t payload_bytes = 0;  // of one unit
  int64_t steps = 0;          // committed in the whole run
  int64_t acknowledged = 0;   // units, in the whole run
  // Acknowledged units that the ledger lacks or has with other bytes.
  int64_t lost_units = 0;
  bool ledger_ok = false;    // as `cox ledger verify` says
  std::string ledger_error;  // the first violation
  int64_t failed_calls = 0;
  std::string first_error;
};

// Call it from the main thread: the coordinator is its child.
absl::StatusOr<RolloutBenchResult> RunRolloutBench(
    const RolloutBenchOptions& options);

}  // namespace cox

#endif  // COX_CLI_BENCH_ROLLOUT_H_
