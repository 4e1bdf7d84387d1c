#ifndef COX_COORDINATOR_CHECKPOINT_SERVICE_H_
#define COX_COORDINATOR_CHECKPOINT_SERVICE_H_

#include "coordinator/coordinator_service.h"
#include "cox/v1/checkpoint.grpc.pb.h"

namespace cox {

class CheckpointServiceImpl final
    : public cox::v1::CheckpointService::CallbackService {
 public:
  explicit CheckpointServiceImpl(ServiceContext* service)
      : service_(*service) {}

  grpc::ServerUnaryReactor* BeginCheckpoint(
      grpc::CallbackServerContext* context,
      const cox::v1::BeginCheckpointRequest* request,
      cox::v1::BeginCheckpointResponse* response) override;
  grpc::ServerUnaryReactor* CommitCheckpoint(
      grpc::CallbackServerContext* context,
      const cox::v1::CommitCheckpointRequest* request,
      cox::v1::CommitCheckpointResponse* response) override;
  grpc::ServerUnaryReactor* LatestCheckpoint(
      grpc::CallbackServerContext* context,
      const cox::v1::LatestCheckpointRequest* request,
      cox::v1::LatestCheckpointResponse* response) override;

 private:
  ServiceContext& service_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_CHECKPOINT_SERVICE_H_
