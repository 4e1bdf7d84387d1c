#include "coordinator/scaler_service.h"

#include <optional>
#include <utility>

namespace cox {
namespace {

namespace keda = externalscaler;

constexpr absl::Duration kStreamLife = absl::Hours(1);

// INVALID_ARGUMENT for a role that this scaler knows nothing about.
absl::StatusOr<int64_t> Wanted(const LoadView& load,
                               const keda::ScaledObjectRef& object) {
  const auto role = object.scalermetadata().find("role");
  if (role == object.scalermetadata().end() || role->second == "actor") {
    return WantedActors(load);
  }
  if (role->second == "reward") return load.needs_actors ? 1 : 0;
  return absl::InvalidArgumentError(
      "scalerMetadata.role: expected 'actor' or 'reward'");
}

// Answers on the core thread; `fn(core) -> absl::Status` fills the response.
template <typename Fn>
grpc::ServerUnaryReactor* Answer(ServiceContext& service,
                                 grpc::CallbackServerContext* context, Fn fn) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  CoreHost* host = service.host;
  const bool posted = host->Post([host, reactor, fn = std::move(fn)] {
    reactor->Finish(ToGrpc(fn(host->core())));
  });
  if (!posted) reactor->Finish(ToGrpc(BusyError()));
  return reactor;
}

void FillSpec(keda::GetMetricSpecResponse* response) {
  keda::MetricSpec* spec = response->add_metricspecs();
  spec->set_metricname(kScalerMetric);
  spec->set_targetsize(1);
  spec->set_targetsizefloat(1);
}

// Sends the state when it opens and at every change. Deletes itself.
class ActiveStream final
    : public grpc::ServerWriteReactor<keda::IsActiveResponse> {
 public:
  ActiveStream(ServiceContext& service, grpc::CallbackServerContext* context,
               keda::ScaledObjectRef object)
      : service_(service),
        context_(context),
        object_(std::move(object)),
        until_(Clock::Real().Now() + kStreamLife) {
    Wait();
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      Wait();
    } else {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "stream broke"));
    }
  }
  void OnDone() override { delete this; }

 private:
  void Wait() {
    CoreHost* host = service_.host;
    if (!host->Post([this, host] { Poll(*host); })) {
      Finish(ToGrpc(BusyError()));
    }
  }
  // Parks for a second at a time: a caller that is gone is noticed then at the
  // latest.
  void Poll(CoreHost& host) {
    host.Park(absl::Seconds(1), [this, &host](bool expired) {
      if (context_->IsCancelled() || !host.parking() ||
          Clock::Real().Now() > until_) {
        Finish(grpc::Status::OK);
        return true;
      }
      const absl::StatusOr<int64_t> wanted =
          Wanted(host.core().Load(), object_);
      if (!wanted.ok()) {
        Finish(ToGrpc(wanted.status()));
        return true;
      }
      if (sent_ != (*wanted > 0)) {
        sent_ = *wanted > 0;
        message_.set_result(*sent_);
        StartWrite(&message_);
        return true;
      }
      if (expired) Wait();
      return expired;
    });
  }

  ServiceContext& service_;
  grpc::CallbackServerContext* const context_;
  const keda::ScaledObjectRef object_;
  const MonoTime until_;
  std::optional<bool> sent_;
  keda::IsActiveResponse message_;
};

// The specification never changes: one message, then the stream stays open
// until the caller leaves it.
class SpecStream final
    : public grpc::ServerWriteReactor<keda::GetMetricSpecResponse> {
 public:
  explicit SpecStream() {
    FillSpec(&message_);
    StartWrite(&message_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) End();
  }
  void OnCancel() override { End(); }
  void OnDone() override { delete this; }

 private:
  void End() {
    if (!ended_.exchange(true)) Finish(grpc::Status::CANCELLED);
  }
  std::atomic<bool> ended_{false};
  keda::GetMetricSpecResponse message_;
};

}  // namespace

grpc::ServerUnaryReactor* ScalerServiceImpl::IsActive(
    grpc::CallbackServerContext* context, const keda::ScaledObjectRef* request,
    keda::IsActiveResponse* response) {
  return Answer(service_, context,
                [request, response](CoordinatorCore& core) -> absl::Status {
                  COX_ASSIGN_OR_RETURN(const int64_t wanted,
                                       Wanted(core.Load(), *request));
                  response->set_result(wanted > 0);
                  return absl::OkStatus();
                });
}

grpc::ServerWriteReactor<keda::IsActiveResponse>*
ScalerServiceImpl::StreamIsActive(grpc::CallbackServerContext* context,
                                  const keda::ScaledObjectRef* request) {
  return new ActiveStream(service_, context, *request);
}

grpc::ServerUnaryReactor* ScalerServiceImpl::GetMetricSpec(
    grpc::CallbackServerContext* context, const keda::ScaledObjectRef*,
    keda::GetMetricSpecResponse* response) {
  FillSpec(response);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* ScalerServiceImpl::GetMetrics(
    grpc::CallbackServerContext* context,
    const keda::GetMetricsRequest* request,
    keda::GetMetricsResponse* response) {
  return Answer(
      service_, context,
      [request, response](CoordinatorCore& core) -> absl::Status {
        if (request->metricname() != kScalerMetric) {
          return absl::InvalidArgumentError(
              absl::StrCat("metricName: expected '", kScalerMetric, "'"));
        }
        COX_ASSIGN_OR_RETURN(const int64_t wanted,
                             Wanted(core.Load(), request->scaledobjectref()));
        keda::MetricValue* value = response->add_metricvalues();
        value->set_metricname(kScalerMetric);
        value->set_metricvalue(wanted);
        value->set_metricvaluefloat(static_cast<double>(wanted));
        return absl::OkStatus();
      });
}

grpc::ServerWriteReactor<keda::GetMetricSpecResponse>*
ScalerServiceImpl::StreamMetricSpec(grpc::CallbackServerContext*,
                                    const keda::ScaledObjectRef*) {
  return new SpecStream();
}

}  // namespace cox
