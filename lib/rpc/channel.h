#ifndef COX_LIB_RPC_CHANNEL_H_
#define COX_LIB_RPC_CHANNEL_H_

// Channels with this project's limits, and where the coordinator is.

#include <memory>
#include <string>
#include <string_view>

#include "grpcpp/channel.h"
#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/rpc/tls.h"

namespace cox {

// A lazy channel with the certificate of this process, if it has one: connects
// at its first call. Errors of CheckAddress().
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(
    const std::string& target);
// The same as another identity; null = plaintext.
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannelAs(
    const std::string& target, const TlsIdentity* tls);

// A coordinator's address as given on a command line.
struct Endpoint {
  std::string address;  // host:port
  std::string run_id;   // "" when the source does not say
};

// `source` is host:port, or "file:PATH" of an endpoints.json that the
// coordinator rewrites at each start:
//   {"run_id": "<32 hex>", "coordinator": "127.0.0.1:4711", ...}
// where "coordinator" may also be an object whose "grpc" is the address.
// UNAVAILABLE while the file is missing or incomplete (it may be about to be
// written); INVALID_ARGUMENT for anything that is no address.
absl::StatusOr<Endpoint> ResolveEndpoint(Fs& fs, std::string_view source);

}  // namespace cox

#endif  // COX_LIB_RPC_CHANNEL_H_
