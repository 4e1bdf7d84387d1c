#ifndef COX_LIB_BASE_FAILPOINT_H_
#define COX_LIB_BASE_FAILPOINT_H_

// Named places at durable borders where a test can hit this process. Inert
// (one predictable branch) unless the environment variable COX_FAILPOINT is
// set when the process starts:
//
//   COX_FAILPOINT=NAME:HIT[:ACTION]   at the HIT-th passage, in every process
//   COX_FAILPOINT=@PATH               PATH holds such a line while armed
//
// With a path, the process that acts removes the file first, so that exactly
// one process acts once, whoever starts again and whoever else passes. Passages
// count from when this process saw the present content of the file: a line may
// end in "#ID" to tell it from an earlier, equal one.
//
// ACTION: kill (default, SIGKILL to this process), hang (forever, holding
// whatever the caller holds), enospc, eio, flip (the caller flips one bit).
// Names, with the role in front: see KillFailpoints().

#include <span>
#include <string_view>

#include "lib/base/status.h"

namespace cox {

struct FailpointName {
  std::string_view role;
  std::string_view name;
};
// Places where a process may be killed, in the order in which they are passed.
std::span<const FailpointName> KillFailpoints();

enum class FailAction { kNone, kEnospc, kEio, kFlip };

namespace internal {
extern const bool failpoints_on;
FailAction HitFailpoint(std::string_view name);
}  // namespace internal

// kill and hang do not return.
inline FailAction HitFailpoint(std::string_view name) {
  return internal::failpoints_on ? internal::HitFailpoint(name)
                                 : FailAction::kNone;
}
// The same as a status: RESOURCE_EXHAUSTED for enospc, INTERNAL for eio.
absl::Status FailpointStatus(std::string_view name);

}  // namespace cox

#endif  // COX_LIB_BASE_FAILPOINT_H_
