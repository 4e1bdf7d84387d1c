#include "lib/rpc/credentials.h"

#include <arpa/inet.h>

#include <algorithm>
#include <string>

namespace cox {
namespace {

absl::StatusOr<std::string> HostOf(std::string_view address) {
  const absl::Status bad = absl::InvalidArgumentError(
      absl::StrCat("address '", std::string(address),
                   "': expected host:port with a port of 0 to 65535"));
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return bad;
  const std::string_view port = address.substr(colon + 1);
  if (port.empty() || port.size() > 5 ||
      !std::all_of(port.begin(), port.end(),
                   [](char c) { return c >= '0' && c <= '9'; }) ||
      std::stoi(std::string(port)) > 65535) {
    return bad;
  }
  std::string_view host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad;
  }
  return std::string(host);
}

bool IsLoopback(const std::string& host) {
  if (host == "localhost" || host == "::1") return true;
  in_addr v4 = {};
  // inet_pton takes the dotted form only, so "127.evil.example" is no match.
  return inet_pton(AF_INET, host.c_str(), &v4) == 1 &&
         (ntohl(v4.s_addr) >> 24) == 127;
}

}  // namespace

absl::Status CheckLoopback(std::string_view address) {
  if (address.starts_with("unix:")) return absl::OkStatus();
  COX_ASSIGN_OR_RETURN(const std::string host, HostOf(address));
  if (IsLoopback(host)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "address '", std::string(address),
      "' is not a loopback address: without certificates (--tls DIR) gRPC is "
      "plaintext, which is allowed on 127.0.0.1, [::1] and localhost only"));
}

absl::Status CheckAddress(std::string_view address, const TlsIdentity* tls) {
  if (tls == nullptr) return CheckLoopback(address);
  if (address.starts_with("unix:")) return absl::OkStatus();
  return HostOf(address).status();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(
    std::string_view bind_address, const TlsIdentity* tls) {
  COX_RETURN_IF_ERROR(CheckAddress(bind_address, tls));
  return tls == nullptr ? grpc::InsecureServerCredentials() : tls->Server();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(
    std::string_view target, const TlsIdentity* tls) {
  COX_RETURN_IF_ERROR(CheckAddress(target, tls));
  return tls == nullptr ? grpc::InsecureChannelCredentials() : tls->Channel();
}

}  // namespace cox
