#include "coordinator/checkpoint_service.h"

#include "coordinator/wire_service.h"

namespace cox {

grpc::ServerUnaryReactor* CheckpointServiceImpl::BeginCheckpoint(
    grpc::CallbackServerContext* context,
    const cox::v1::BeginCheckpointRequest* request,
    cox::v1::BeginCheckpointResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "CheckpointService.BeginCheckpoint",
      [request, response](CoordinatorCore& core) -> absl::Status {
        COX_ASSIGN_OR_RETURN(
            *response->mutable_directory(),
            core.BeginCheckpoint(ToCore(request->caller()), request->stage(),
                                 request->step()));
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* CheckpointServiceImpl::CommitCheckpoint(
    grpc::CallbackServerContext* context,
    const cox::v1::CommitCheckpointRequest* request,
    cox::v1::CommitCheckpointResponse* response) {
  return RunUnary(service_, context, request->caller(),
                  "CheckpointService.CommitCheckpoint",
                  [request, response](CoordinatorCore& core) -> absl::Status {
                    CommitCheckpointEvent event;
                    event.caller = ToCore(request->caller());
                    event.stage = request->checkpoint().stage();
                    event.checkpoint = FromWire(request->checkpoint(),
                                                request->state_sha256());
                    event.weight_hash = request->weight_hash();
                    COX_ASSIGN_OR_RETURN(const std::vector<std::string> removed,
                                         core.CommitCheckpoint(event));
                    for (const std::string& directory : removed) {
                      response->add_delete_directories(directory);
                    }
                    return absl::OkStatus();
                  });
}

grpc::ServerUnaryReactor* CheckpointServiceImpl::LatestCheckpoint(
    grpc::CallbackServerContext* context,
    const cox::v1::LatestCheckpointRequest* request,
    cox::v1::LatestCheckpointResponse* response) {
  return RunUnary(service_, context, request->caller(),
                  "CheckpointService.LatestCheckpoint",
                  [request, response](CoordinatorCore& core) -> absl::Status {
                    for (const CheckpointRow& row :
                         core.LatestCheckpoints(request->stage())) {
                      FillCheckpoint(row, response->add_checkpoints());
                    }
                    return absl::OkStatus();
                  });
}

}  // namespace cox
