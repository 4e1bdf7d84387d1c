#include "lib/rpc/status_convert.h"

#include <string>

#include "absl/strings/cord.h"

namespace cox {
namespace {

// Messages travel in a header; a longer one would be refused as metadata.
constexpr size_t kMaxMessage = 4096;

}  // namespace

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
