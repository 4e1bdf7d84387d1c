#ifndef COX_CLI_HANG_WATCH_H_
#define COX_CLI_HANG_WATCH_H_

// Which processes of a run stand still for so long that only a new one helps.
// Pure: decided from what the coordinator says.

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "cox/v1/monitor.pb.h"

namespace cox {

struct HangLimits {
  // Nothing heard of a process.
  absl::Duration silent = absl::Seconds(30);
  // A learner rank that does not come to the group that the others wait to
  // form. Longer than any collective may take.
  absl::Duration group = absl::Minutes(4);
};

// Names, each once. A name with another session that lives is not one: its
// process was started again.
std::vector<std::string> HungProcesses(const cox::v1::StatusResponse& status,
                                       const HangLimits& limits);

}  // namespace cox

#endif  // COX_CLI_HANG_WATCH_H_
