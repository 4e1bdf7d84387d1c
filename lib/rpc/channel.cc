#include "lib/rpc/channel.h"

#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "lib/rpc/credentials.h"
#include "lib/rpc/limits.h"
#include "nlohmann/json.hpp"

namespace cox {

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(
    const std::string& target) {
  return MakeChannelAs(target, ProcessTls().get());
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannelAs(
    const std::string& target, const TlsIdentity* tls) {
  COX_ASSIGN_OR_RETURN(auto credentials, ChannelCredentials(target, tls));
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetMaxSendMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // Despite its name the time that one attempt gets, handshake included: a
  // busy server may need more than the pause between attempts.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 3'000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  // Retries are ours: they follow the table of limits and register again.
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A new channel must not inherit the back-off of a dead one.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(target, credentials, args);
}

absl::StatusOr<Endpoint> ResolveEndpoint(Fs& fs, std::string_view source) {
  if (!source.starts_with("file:")) {
    COX_RETURN_IF_ERROR(CheckAddress(source, ProcessTls().get()));
    return Endpoint{std::string(source), ""};
  }
  const std::string path(source.substr(5));
  absl::StatusOr<std::string> text = fs.ReadAll(path);
  if (!text.ok()) {
    if (!absl::IsNotFound(text.status())) return text.status();
    return absl::UnavailableError(
        absl::StrCat(path, ": no endpoints yet (is the coordinator up?)"));
  }
  const nlohmann::json json =
      nlohmann::json::parse(*text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  Endpoint endpoint;
  if (json.is_object()) {
    const auto coordinator = json.find("coordinator");
    if (coordinator != json.end() && coordinator->is_string()) {
      endpoint.address = coordinator->get<std::string>();
    } else if (coordinator != json.end() && coordinator->is_object() &&
               coordinator->contains("grpc") &&
               (*coordinator)["grpc"].is_string()) {
      endpoint.address = (*coordinator)["grpc"].get<std::string>();
    }
    const auto run_id = json.find("run_id");
    if (run_id != json.end() && run_id->is_string()) {
      endpoint.run_id = run_id->get<std::string>();
    }
  }
  if (endpoint.address.empty()) {
    return absl::UnavailableError(
        absl::StrCat(path, ": expected a JSON object with 'coordinator'"));
  }
  COX_RETURN_IF_ERROR(
      Annotate(CheckAddress(endpoint.address, ProcessTls().get()), path));
  return endpoint;
}

}  // namespace cox
