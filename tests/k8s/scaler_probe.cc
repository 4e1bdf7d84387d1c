// Asks a coordinator for its autoscaling signal as KEDA does: mutual TLS with
// the certificate of role `scaler`, the name checked, no deadline and no
// Caller message.
//
//   scaler_probe ADDRESS SERVER_NAME TLS_DIR [SECONDS]
//
// Prints "<active 0|1> <replicas wanted>" every half second; 1 = refused.

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/time/clock.h"
#include "coordinator/scaler_service.h"
#include "grpcpp/create_channel.h"
#include "keda/externalscaler.grpc.pb.h"
#include "lib/base/fs.h"

namespace cox {
namespace {

int Probe(const std::string& address, const std::string& server_name,
          const std::string& tls_dir, double seconds) {
  grpc::SslCredentialsOptions tls;
  for (auto [file, text] : {std::pair{"ca.crt", &tls.pem_root_certs},
                            std::pair{"tls.crt", &tls.pem_cert_chain},
                            std::pair{"tls.key", &tls.pem_private_key}}) {
    const auto read = Fs::Real().ReadAll(JoinPath(tls_dir, file));
    if (!read.ok()) {
      std::fprintf(stderr, "%s\n", read.status().ToString().c_str());
      return 2;
    }
    *text = *read;
  }
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(server_name);
  const auto stub = externalscaler::ExternalScaler::NewStub(
      grpc::CreateCustomChannel(address, grpc::SslCredentials(tls), arguments));
  const absl::Time until = absl::Now() + absl::Seconds(seconds);
  do {
    externalscaler::ScaledObjectRef object;
    object.set_name("actor");
    (*object.mutable_scalermetadata())["role"] = "actor";
    grpc::ClientContext active_context;
    externalscaler::IsActiveResponse active;
    grpc::Status status = stub->IsActive(&active_context, object, &active);
    externalscaler::GetMetricsResponse metrics;
    if (status.ok()) {
      grpc::ClientContext context;
      externalscaler::GetMetricsRequest request;
      *request.mutable_scaledobjectref() = object;
      request.set_metricname(kScalerMetric);
      status = stub->GetMetrics(&context, request, &metrics);
    }
    if (!status.ok() || metrics.metricvalues_size() != 1) {
      std::fprintf(stderr, "%d: %s\n", status.error_code(),
                   status.error_message().c_str());
      // The coordinator may be on its way back.
      if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return 1;
    } else {
      std::printf(
          "%d %lld\n", active.result() ? 1 : 0,
          static_cast<long long>(metrics.metricvalues(0).metricvalue()));
      std::fflush(stdout);
    }
    if (absl::Now() >= until) break;
    absl::SleepFor(absl::Milliseconds(500));
  } while (true);
  return 0;
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr,
                 "usage: scaler_probe ADDRESS SERVER_NAME TLS_DIR [SECONDS]\n");
    return 2;
  }
  return cox::Probe(argv[1], argv[2], argv[3],
                    argc > 4 ? std::atof(argv[4]) : 0);
}
