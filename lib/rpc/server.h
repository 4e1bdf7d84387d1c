#ifndef COX_LIB_RPC_SERVER_H_
#define COX_LIB_RPC_SERVER_H_

// A gRPC server with this project's limits, health service and bound port.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "cox/v1/types.pb.h"
#include "grpcpp/impl/codegen/service_type.h"
#include "grpcpp/server.h"
#include "grpcpp/server_context.h"
#include "lib/base/status.h"
#include "lib/rpc/tls.h"

namespace cox {

struct RpcServerOptions {
  std::string bind = "127.0.0.1:0";      // port 0 = the kernel chooses
  std::vector<grpc::Service*> services;  // must outlive the server
  std::string advertise = "";  // host that others reach; "" = that of `bind`
  // Certificate; null = that of the process (plaintext when it has none).
  std::shared_ptr<const TlsIdentity> tls = nullptr;
};

// Thread-safe.
class RpcServer {
 public:
  // Serves when it returns; health says NOT_SERVING until SetServing(true).
  // FAILED_PRECONDITION: not loopback. UNAVAILABLE: the port is taken.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const RpcServerOptions& options);
  ~RpcServer();  // Shutdown(0)
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;

  int port() const { return port_; }
  const std::string& address() const { return address_; }  // host:port
  void SetServing(bool serving);
  // Takes no new calls, lets open ones finish for `grace`, cancels the rest
  // and waits for them. Idempotent.
  void Shutdown(absl::Duration grace);

 private:
  RpcServer() = default;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  std::string address_;
};

// What every handler checks first: the call has a deadline (INVALID_ARGUMENT),
// belongs to this run (not checked while `run_id` is empty) and, with TLS, the
// caller claims the role of its certificate (else PERMISSION_DENIED).
absl::Status CheckCall(const grpc::ServerContextBase& context,
                       const cox::v1::Caller& caller, std::string_view run_id);

// Time left until the call's deadline, at most a day.
absl::Duration TimeLeft(const grpc::ServerContextBase& context);

}  // namespace cox

#endif  // COX_LIB_RPC_SERVER_H_
