#include "lib/rpc/server.h"

#include <algorithm>
#include <chrono>

#include "grpcpp/ext/health_check_service_server_builder_option.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server_builder.h"
#include "lib/rpc/credentials.h"
#include "lib/rpc/limits.h"

namespace cox {

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const RpcServerOptions& options) {
  const std::shared_ptr<const TlsIdentity> tls =
      options.tls != nullptr ? options.tls : ProcessTls();
  COX_ASSIGN_OR_RETURN(auto credentials,
                       ServerCredentials(options.bind, tls.get()));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.bind, credentials, &port);
  for (grpc::Service* service : options.services) {
    builder.RegisterService(service);
  }
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8 << 10);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, 3'600'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 30'000);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1024);
  // Two processes on one port would each get half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  auto server = std::unique_ptr<RpcServer>(new RpcServer());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.bind));
  }
  server->port_ = port;
  const size_t colon = options.bind.rfind(':');
  server->address_ =
      absl::StrCat(options.advertise.empty() ? options.bind.substr(0, colon)
                                             : options.advertise,
                   ":", port);
  server->SetServing(false);
  return server;
}

RpcServer::~RpcServer() { Shutdown(absl::ZeroDuration()); }

void RpcServer::SetServing(bool serving) {
  auto* health = server_->GetHealthCheckService();
  if (health != nullptr) health->SetServingStatus(serving);
}

void RpcServer::Shutdown(absl::Duration grace) {
  if (server_ == nullptr) return;  // it never started
  server_->Shutdown(std::chrono::system_clock::now() +
                    absl::ToChronoMicroseconds(grace));
  server_->Wait();
}

absl::Duration TimeLeft(const grpc::ServerContextBase& context) {
  const auto deadline = context.deadline();
  const auto now = std::chrono::system_clock::now();
  if (deadline - now > std::chrono::hours(24)) return absl::Hours(24);
  return std::max(absl::ZeroDuration(), absl::FromChrono(deadline - now));
}

absl::Status CheckCall(const grpc::ServerContextBase& context,
                       const cox::v1::Caller& caller, std::string_view run_id) {
  if (context.deadline() == std::chrono::system_clock::time_point::max()) {
    return absl::InvalidArgumentError("the call has no deadline");
  }
  if (!run_id.empty() && caller.run_id() != run_id) {
    return absl::PermissionDeniedError("caller.run_id: another run");
  }
  const std::string peer = PeerUriOf(context.auth_context().get());
  if (!peer.empty() && RoleInIdentity(peer) != caller.role()) {
    return absl::PermissionDeniedError(
        absl::StrCat("caller.role: the certificate is of the role '",
                     std::string(RoleInIdentity(peer)), "'"));
  }
  return absl::OkStatus();
}

}  // namespace cox
