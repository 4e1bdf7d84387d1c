#ifndef COX_LIB_RPC_ERROR_REASON_H_
#define COX_LIB_RPC_ERROR_REASON_H_

// What a status code alone is too coarse for. Travels as an absl::Status
// payload and, on the wire, in gRPC's binary status details. gRPC-free.

#include <string_view>

#include "lib/base/status.h"

namespace cox {

enum class ErrorReason {
  kNone,
  kUnknownSession,   // NOT_FOUND: the coordinator restarted; register again
  kStaleEpoch,       // FAILED_PRECONDITION: register again
  kStaleGeneration,  // FAILED_PRECONDITION: this learner group is over; rejoin
  kNotReady,         // UNAVAILABLE: alive, nothing yet; ask again (TakeBatch)
  kDamagedOnTheWay,  // DATA_LOSS: bytes changed in transfer; send them again
};

// Of the status payload that holds the reason's name.
inline constexpr char kReasonUrl[] = "cox.v1.reason";

std::string_view ErrorReasonName(ErrorReason reason);  // "stale_epoch", ...

// `status` with the reason attached. OK and kNone leave it unchanged.
absl::Status WithReason(absl::Status status, ErrorReason reason);
// kNone when absent or not known to this build.
ErrorReason ReasonOf(const absl::Status& status);

}  // namespace cox

#endif  // COX_LIB_RPC_ERROR_REASON_H_
