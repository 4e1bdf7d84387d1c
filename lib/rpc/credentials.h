#ifndef COX_LIB_RPC_CREDENTIALS_H_
#define COX_LIB_RPC_CREDENTIALS_H_

// Who may connect. Every server and channel of every role gets its credentials
// here: mutual TLS when the process has a certificate (lib/rpc/tls.h), else
// plaintext, and then loopback only.

#include <memory>
#include <string_view>

#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "lib/base/status.h"
#include "lib/rpc/tls.h"

namespace cox {

// OK for 127.0.0.0/8, [::1], localhost (with a port) and unix:PATH.
// FAILED_PRECONDITION otherwise: plaintext never leaves this machine.
// INVALID_ARGUMENT when it is no host:port.
absl::Status CheckLoopback(std::string_view address);

// Syntax of host:port always; loopback only while `tls` is null.
absl::Status CheckAddress(std::string_view address, const TlsIdentity* tls);

// `tls` null = plaintext.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(
    std::string_view bind_address, const TlsIdentity* tls);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(
    std::string_view target, const TlsIdentity* tls);

}  // namespace cox

#endif  // COX_LIB_RPC_CREDENTIALS_H_
