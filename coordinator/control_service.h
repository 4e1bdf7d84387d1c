#ifndef COX_COORDINATOR_CONTROL_SERVICE_H_
#define COX_COORDINATOR_CONTROL_SERVICE_H_

#include "coordinator/coordinator_service.h"
#include "cox/v1/control.grpc.pb.h"

namespace cox {

class ControlServiceImpl final
    : public cox::v1::ControlService::CallbackService {
 public:
  explicit ControlServiceImpl(ServiceContext* service) : service_(*service) {}

  grpc::ServerUnaryReactor* Pause(grpc::CallbackServerContext* context,
                                  const cox::v1::PauseRequest* request,
                                  cox::v1::ControlResponse* response) override;
  grpc::ServerUnaryReactor* Resume(grpc::CallbackServerContext* context,
                                   const cox::v1::ResumeRequest* request,
                                   cox::v1::ControlResponse* response) override;
  grpc::ServerUnaryReactor* Stop(grpc::CallbackServerContext* context,
                                 const cox::v1::StopRequest* request,
                                 cox::v1::ControlResponse* response) override;
  // Records how many replicas are wanted of actors or reward; whoever starts
  // the processes (`cox run`) brings the run there.
  grpc::ServerUnaryReactor* Scale(grpc::CallbackServerContext* context,
                                  const cox::v1::ScaleRequest* request,
                                  cox::v1::ControlResponse* response) override;
  // From two steps after the last commit on, for all ranks alike; recorded, so
  // that a replay uses it. FAILED_PRECONDITION: stage ppo is not running, or
  // the run was started without a KL penalty.
  grpc::ServerUnaryReactor* SetKlCoef(
      grpc::CallbackServerContext* context,
      const cox::v1::SetKlCoefRequest* request,
      cox::v1::ControlResponse* response) override;

 private:
  ServiceContext& service_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_CONTROL_SERVICE_H_
