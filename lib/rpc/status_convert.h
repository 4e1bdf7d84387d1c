#ifndef COX_LIB_RPC_STATUS_CONVERT_H_
#define COX_LIB_RPC_STATUS_CONVERT_H_

// The one place where our codes become gRPC's and back. Codes are the same
// numbers; an ErrorReason survives the trip.

#include "grpcpp/support/status.h"
#include "lib/base/status.h"
#include "lib/rpc/error_reason.h"

namespace cox {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace cox

#endif  // COX_LIB_RPC_STATUS_CONVERT_H_
