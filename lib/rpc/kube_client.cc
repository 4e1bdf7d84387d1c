#include "lib/rpc/kube_client.h"

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "httplib.h"
#include "lib/base/fs.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

absl::StatusOr<std::string> ReadWord(const std::string& dir,
                                     const std::string& file) {
  COX_ASSIGN_OR_RETURN(std::string text,
                       Fs::Real().ReadAll(JoinPath(dir, file)));
  absl::StripAsciiWhitespace(&text);
  return text;
}

}  // namespace

absl::StatusOr<KubeClient> KubeClient::Create(KubeClientOptions options) {
  if (options.host.empty()) {
    options.host = Environment("KUBERNETES_SERVICE_HOST");
  }
  if (options.port == 0) {
    const std::string port = Environment("KUBERNETES_SERVICE_PORT");
    if (!absl::SimpleAtoi(port, &options.port)) options.port = 443;
  }
  if (options.host.empty()) {
    return absl::FailedPreconditionError(
        "KUBERNETES_SERVICE_HOST is not set: this is no pod");
  }
  KubeClient client(std::move(options));
  const absl::StatusOr<std::string> ns =
      ReadWord(client.options_.dir, "namespace");
  const absl::StatusOr<std::string> token =
      ReadWord(client.options_.dir, "token");
  if (!ns.ok() || !token.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat(client.options_.dir,
                     ": expected the files token, ca.crt and "
                     "namespace of a service account"));
  }
  client.ns_ = *ns;
  return client;
}

absl::Status KubeClient::Annotate(
    const std::string& pod,
    const std::map<std::string, std::string>& annotations) {
  COX_ASSIGN_OR_RETURN(const std::string token,
                       ReadWord(options_.dir, "token"));
  httplib::SSLClient http(options_.host, options_.port);
  http.set_ca_cert_path(JoinPath(options_.dir, "ca.crt").c_str());
  http.enable_server_certificate_verification(true);
  const auto seconds =
      static_cast<time_t>(absl::ToInt64Seconds(options_.timeout));
  http.set_connection_timeout(seconds, 0);
  http.set_read_timeout(seconds, 0);
  http.set_write_timeout(seconds, 0);
  const nlohmann::json body = {{"metadata", {{"annotations", annotations}}}};
  const std::string path =
      absl::StrCat("/api/v1/namespaces/", ns_, "/pods/", pod);
  const httplib::Result result = http.Patch(
      path.c_str(), {{"Authorization", absl::StrCat("Bearer ", token)}},
      body.dump(), "application/merge-patch+json");
  if (!result) {
    return absl::UnavailableError(
        absl::StrCat("API server ", options_.host, ":", options_.port, ": ",
                     httplib::to_string(result.error())));
  }
  if (result->status / 100 == 2) return absl::OkStatus();
  const std::string said = absl::StrCat("PATCH ", path, ": ", result->status,
                                        " ", result->body.substr(0, 300));
  switch (result->status) {
    case 404:
      return absl::NotFoundError(said);
    case 401:
    case 403:
      return absl::PermissionDeniedError(said);
    default:
      return absl::UnavailableError(said);
  }
}

}  // namespace cox
