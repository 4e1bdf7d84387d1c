#include "lib/rpc/status_convert.h"

#include <string>

#include "absl/strings/cord.h"

namespace cox {
namespace {

constexpr char kReasonUrl[] = "cox.v1.reason";
// Messages travel in a header; a longer one would be refused as metadata.
constexpr size_t kMaxMessage = 4096;

}  // namespace

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
        ErrorReason::kStaleGeneration, ErrorReason::kNotReady}) {
    if (name == ErrorReasonName(reason)) return reason;
  }
  return ErrorReason::kNone;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::string_view message = status.message().substr(0, kMaxMessage);
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(message.data(), message.size()),
                      std::string(ErrorReasonName(ReasonOf(status))));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
  if (!status.error_details().empty() && status.error_details().size() < 64) {
    result.SetPayload(kReasonUrl, absl::Cord(status.error_details()));
  }
  return result;
}

}  // namespace cox
