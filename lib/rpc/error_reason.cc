#include "lib/rpc/error_reason.h"

#include <string>

#include "absl/strings/cord.h"

namespace cox {

std::string_view ErrorReasonName(ErrorReason reason) {
  switch (reason) {
    case ErrorReason::kNone:
      return "";
    case ErrorReason::kUnknownSession:
      return "unknown_session";
    case ErrorReason::kStaleEpoch:
      return "stale_epoch";
    case ErrorReason::kStaleGeneration:
      return "stale_generation";
    case ErrorReason::kNotReady:
      return "not_ready";
    case ErrorReason::kDamagedOnTheWay:
      return "damaged_on_the_way";
  }
  return "";
}

absl::Status WithReason(absl::Status status, ErrorReason reason) {
  if (!status.ok() && reason != ErrorReason::kNone) {
    const std::string_view name = ErrorReasonName(reason);
    status.SetPayload(kReasonUrl,
                      absl::Cord(absl::string_view(name.data(), name.size())));
  }
  return status;
}

ErrorReason ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonUrl);
  if (!payload.has_value()) return ErrorReason::kNone;
  const std::string name(*payload);
  for (ErrorReason reason :
       {ErrorReason::kUnknownSession, ErrorReason::kStaleEpoch,
        ErrorReason::kStaleGeneration, ErrorReason::kNotReady,
        ErrorReason::kDamagedOnTheWay}) {
    if (name == ErrorReasonName(reason)) return reason;
  }
  return ErrorReason::kNone;
}

}  // namespace cox
