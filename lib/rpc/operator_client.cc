#include "lib/rpc/operator_client.h"

#include <utility>

#include "cox/v1/control.grpc.pb.h"
#include "cox/v1/monitor.grpc.pb.h"
#include "lib/rpc/call_core.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

}  // namespace

class OperatorClient::Impl {
 public:
  explicit Impl(OperatorClientOptions options)
      : core_({.address = std::move(options.address),
               .caller = {.run_id = std::move(options.run_id),
                          .session = NewSessionId(),
                          .role = std::move(options.role),
                          .name = std::move(options.name),
                          .epoch = {},
                          .generation = {}},
               .patience = options.patience,
               .max_backoff = absl::Seconds(1),
               .reregister = nullptr}) {}

  template <typename Service, typename Request, typename Response>
  absl::StatusOr<Response> Unary(
      std::string_view method, Request request,
      grpc::Status (Service::Stub::*function)(grpc::ClientContext*,
                                              const Request&, Response*)) {
    Response response;
    COX_RETURN_IF_ERROR(core_.Call(
        {.method = method, .extra = absl::ZeroDuration()},
        [&](const std::shared_ptr<grpc::Channel>& channel,
            grpc::ClientContext* context) {
          core_.FillCaller(request.mutable_caller());
          response.Clear();
          auto stub = Service::NewStub(channel);
          return (stub.get()->*function)(context, request, &response);
        }));
    return response;
  }
  template <typename Request>
  absl::StatusOr<int64_t> Control(
      std::string_view method, Request request,
      grpc::Status (v1::ControlService::Stub::*function)(
          grpc::ClientContext*, const Request&, v1::ControlResponse*)) {
    COX_ASSIGN_OR_RETURN(
        v1::ControlResponse response,
        Unary<v1::ControlService>(method, std::move(request), function));
    return response.effective_step();
  }

 private:
  CallCore core_;
};

OperatorClient::OperatorClient(OperatorClientOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
OperatorClient::~OperatorClient() = default;

absl::StatusOr<v1::StatusResponse> OperatorClient::Status() {
  return impl_->Unary<v1::MonitorService>("MonitorService.Status",
                                          v1::StatusRequest(),
                                          &v1::MonitorService::Stub::Status);
}

absl::StatusOr<v1::MetricsResponse> OperatorClient::Metrics(
    int32_t stage, int64_t after_step) {
  v1::MetricsRequest request;
  request.set_stage(stage);
  request.set_after_step(after_step);
  return impl_->Unary<v1::MonitorService>("MonitorService.Metrics",
                                          std::move(request),
                                          &v1::MonitorService::Stub::Metrics);
}

absl::StatusOr<v1::SamplesResponse> OperatorClient::Samples(int32_t stage,
                                                            int64_t step,
                                                            int32_t limit) {
  v1::SamplesRequest request;
  request.set_stage(stage);
  request.set_step(step);
  request.set_limit(limit);
  return impl_->Unary<v1::MonitorService>("MonitorService.Samples",
                                          std::move(request),
                                          &v1::MonitorService::Stub::Samples);
}

absl::StatusOr<v1::EventsResponse> OperatorClient::Events(int64_t after,
                                                          int32_t limit) {
  v1::EventsRequest request;
  request.set_after(after);
  request.set_limit(limit);
  return impl_->Unary<v1::MonitorService>("MonitorService.Events",
                                          std::move(request),
                                          &v1::MonitorService::Stub::Events);
}

absl::StatusOr<v1::StuckResponse> OperatorClient::Stuck() {
  return impl_->Unary<v1::MonitorService>("MonitorService.Stuck",
                                          v1::StuckRequest(),
                                          &v1::MonitorService::Stub::Stuck);
}

absl::StatusOr<int64_t> OperatorClient::Pause() {
  return impl_->Control("ControlService.Pause", v1::PauseRequest(),
                        &v1::ControlService::Stub::Pause);
}
absl::StatusOr<int64_t> OperatorClient::Resume() {
  return impl_->Control("ControlService.Resume", v1::ResumeRequest(),
                        &v1::ControlService::Stub::Resume);
}
absl::StatusOr<int64_t> OperatorClient::Stop() {
  return impl_->Control("ControlService.Stop", v1::StopRequest(),
                        &v1::ControlService::Stub::Stop);
}
absl::StatusOr<int64_t> OperatorClient::Scale(const std::string& role,
                                              int32_t replicas) {
  v1::ScaleRequest request;
  request.set_role(role);
  request.set_replicas(replicas);
  return impl_->Control("ControlService.Scale", std::move(request),
                        &v1::ControlService::Stub::Scale);
}
absl::StatusOr<int64_t> OperatorClient::SetKlCoef(double kl_coef) {
  v1::SetKlCoefRequest request;
  request.set_kl_coef(kl_coef);
  return impl_->Control("ControlService.SetKlCoef", std::move(request),
                        &v1::ControlService::Stub::SetKlCoef);
}

}  // namespace cox
