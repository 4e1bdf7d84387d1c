#ifndef COX_COORDINATOR_MONITOR_SERVICE_H_
#define COX_COORDINATOR_MONITOR_SERVICE_H_

#include "coordinator/coordinator_service.h"
#include "cox/v1/monitor.grpc.pb.h"

namespace cox {

class MonitorServiceImpl final
    : public cox::v1::MonitorService::CallbackService {
 public:
  explicit MonitorServiceImpl(ServiceContext* service) : service_(*service) {}

  grpc::ServerUnaryReactor* Status(grpc::CallbackServerContext* context,
                                   const cox::v1::StatusRequest* request,
                                   cox::v1::StatusResponse* response) override;
  grpc::ServerUnaryReactor* Metrics(
      grpc::CallbackServerContext* context,
      const cox::v1::MetricsRequest* request,
      cox::v1::MetricsResponse* response) override;
  // Of a step of the current stage; earlier ones are in samples.jsonl.
  grpc::ServerUnaryReactor* Samples(
      grpc::CallbackServerContext* context,
      const cox::v1::SamplesRequest* request,
      cox::v1::SamplesResponse* response) override;
  grpc::ServerUnaryReactor* Events(grpc::CallbackServerContext* context,
                                   const cox::v1::EventsRequest* request,
                                   cox::v1::EventsResponse* response) override;
  grpc::ServerUnaryReactor* Stuck(grpc::CallbackServerContext* context,
                                  const cox::v1::StuckRequest* request,
                                  cox::v1::StuckResponse* response) override;

 private:
  ServiceContext& service_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_MONITOR_SERVICE_H_
