#ifndef COX_CLI_BENCH_ECHO_CLIENT_H_
#define COX_CLI_BENCH_ECHO_CLIENT_H_

// Messages to and fro over gRPC within this process: what the transport alone
// can do with this project's server and channels.

#include <cstdint>
#include <vector>

#include "lib/base/status.h"

namespace cox {

struct EchoOptions {
  bool stream = false;  // one stream per slot instead of a call per message
  int64_t payload = 0;  // bytes each way
  int clients = 1;      // connections
  int inflight = 1;     // messages under way per connection
  double seconds = 5;
};
struct EchoResult {
  int64_t messages = 0;
  double seconds = 0;
  std::vector<double> rtt_us;
  int64_t damaged = 0;  // answers that were not what was sent
};
absl::StatusOr<EchoResult> RunEcho(const EchoOptions& options);

}  // namespace cox

#endif  // COX_CLI_BENCH_ECHO_CLIENT_H_
