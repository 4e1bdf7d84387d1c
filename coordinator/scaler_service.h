#ifndef COX_COORDINATOR_SCALER_SERVICE_H_
#define COX_COORDINATOR_SCALER_SERVICE_H_

// KEDA's external scaler for the actors (and, by scalerMetadata
// {role: reward}, for the reward replicas: active or not). The metric is the
// number of replicas that the run can use (coordinator/scaler_core.h), with a
// target of 1 per replica, so that the autoscaler's
// ceil(metric / target) is that number.
//
// KEDA calls without a deadline and without our Caller message; who may call
// is decided by its certificate (role `scaler`). Streams end after an hour.

#include "coordinator/coordinator_service.h"
#include "keda/externalscaler.grpc.pb.h"

namespace cox {

inline constexpr char kScalerMetric[] = "cox-replicas-wanted";

class ScalerServiceImpl final
    : public externalscaler::ExternalScaler::CallbackService {
 public:
  explicit ScalerServiceImpl(ServiceContext* service) : service_(*service) {}

  grpc::ServerUnaryReactor* IsActive(
      grpc::CallbackServerContext* context,
      const externalscaler::ScaledObjectRef* request,
      externalscaler::IsActiveResponse* response) override;
  grpc::ServerWriteReactor<externalscaler::IsActiveResponse>* StreamIsActive(
      grpc::CallbackServerContext* context,
      const externalscaler::ScaledObjectRef* request) override;
  grpc::ServerUnaryReactor* GetMetricSpec(
      grpc::CallbackServerContext* context,
      const externalscaler::ScaledObjectRef* request,
      externalscaler::GetMetricSpecResponse* response) override;
  grpc::ServerUnaryReactor* GetMetrics(
      grpc::CallbackServerContext* context,
      const externalscaler::GetMetricsRequest* request,
      externalscaler::GetMetricsResponse* response) override;
  grpc::ServerWriteReactor<externalscaler::GetMetricSpecResponse>*
  StreamMetricSpec(grpc::CallbackServerContext* context,
                   const externalscaler::ScaledObjectRef* request) override;

 private:
  ServiceContext& service_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_SCALER_SERVICE_H_
