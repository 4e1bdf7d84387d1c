#ifndef COX_LIB_RPC_CREDENTIALS_H_
#define COX_LIB_RPC_CREDENTIALS_H_

// Who may connect. Every server and channel of every role gets its credentials
// here: plaintext, and therefore loopback only. Mutual TLS belongs here too.

#include <memory>
#include <string_view>

#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "lib/base/status.h"

namespace cox {

// OK for 127.0.0.0/8, [::1], localhost (with a port) and unix:PATH.
// FAILED_PRECONDITION otherwise: plaintext never leaves this machine.
// INVALID_ARGUMENT when it is no host:port.
absl::Status CheckLoopback(std::string_view address);

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(
    std::string_view bind_address);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(
    std::string_view target);

}  // namespace cox

#endif  // COX_LIB_RPC_CREDENTIALS_H_
