#ifndef COX_COORDINATOR_RUN_SERVICE_H_
#define COX_COORDINATOR_RUN_SERVICE_H_

#include "coordinator/coordinator_service.h"
#include "cox/v1/run.grpc.pb.h"

namespace cox {

class RunServiceImpl final : public cox::v1::RunService::CallbackService {
 public:
  explicit RunServiceImpl(ServiceContext* service) : service_(*service) {}

  grpc::ServerUnaryReactor* Register(
      grpc::CallbackServerContext* context,
      const cox::v1::RegisterRequest* request,
      cox::v1::RegisterResponse* response) override;
  grpc::ServerUnaryReactor* Heartbeat(
      grpc::CallbackServerContext* context,
      const cox::v1::HeartbeatRequest* request,
      cox::v1::HeartbeatResponse* response) override;
  grpc::ServerUnaryReactor* GetAssignment(
      grpc::CallbackServerContext* context,
      const cox::v1::GetAssignmentRequest* request,
      cox::v1::Assignment* response) override;
  grpc::ServerUnaryReactor* JoinGroup(
      grpc::CallbackServerContext* context,
      const cox::v1::JoinGroupRequest* request,
      cox::v1::JoinGroupResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const cox::v1::DrainRequest* request,
                                  cox::v1::DrainResponse* response) override;
  grpc::ServerWriteReactor<cox::v1::Chunk>* FetchFile(
      grpc::CallbackServerContext* context,
      const cox::v1::FetchFileRequest* request) override;

 private:
  ServiceContext& service_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_RUN_SERVICE_H_
