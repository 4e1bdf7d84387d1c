#ifndef COX_LIB_RPC_OPERATOR_CLIENT_H_
#define COX_LIB_RPC_OPERATOR_CLIENT_H_

// MonitorService and ControlService, for the command line and the dashboard.
// Never registers. The run id comes from the options or, with "file:PATH",
// from endpoints.json. Thread-safe; errors as in CoordinatorClient.

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "cox/v1/control.pb.h"
#include "cox/v1/monitor.pb.h"
#include "lib/base/status.h"

namespace cox {

struct OperatorClientOptions {
  std::string address;  // see ResolveEndpoint()
  std::string run_id;
  std::string role = "operator";  // or "viewer"
  std::string name = "cox";
  absl::Duration patience = absl::Seconds(5);
};

class OperatorClient {
 public:
  explicit OperatorClient(OperatorClientOptions options);
  ~OperatorClient();
  OperatorClient(const OperatorClient&) = delete;
  OperatorClient& operator=(const OperatorClient&) = delete;

  absl::StatusOr<cox::v1::StatusResponse> Status();
  // `stage` -1 = all; rows after `after_step`.
  absl::StatusOr<cox::v1::MetricsResponse> Metrics(int32_t stage,
                                                   int64_t after_step);
  absl::StatusOr<cox::v1::SamplesResponse> Samples(int32_t stage, int64_t step,
                                                   int32_t limit);
  absl::StatusOr<cox::v1::EventsResponse> Events(int64_t after, int32_t limit);
  absl::StatusOr<cox::v1::StuckResponse> Stuck();

  // Each returns the first step that sees it; 0 = at once.
  absl::StatusOr<int64_t> Pause();
  absl::StatusOr<int64_t> Resume();
  absl::StatusOr<int64_t> Stop();
  absl::StatusOr<int64_t> Scale(const std::string& role, int32_t replicas);
  absl::StatusOr<int64_t> SetKlCoef(double kl_coef);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cox

#endif  // COX_LIB_RPC_OPERATOR_CLIENT_H_
