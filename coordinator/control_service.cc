#include "coordinator/control_service.h"

namespace cox {
namespace {

using cox::v1::ControlResponse;

grpc::ServerUnaryReactor* Command(ServiceContext& service,
                                  grpc::CallbackServerContext* context,
                                  const cox::v1::Caller& caller,
                                  std::string_view method,
                                  std::pair<ControlCommand, ControlResponse*>
                                      command) {
  return RunUnary(service, context, caller, method,
                  [command](CoordinatorCore& core) -> absl::Status {
                    command.second->set_effective_step(
                        core.Control(command.first));
                    return absl::OkStatus();
                  });
}

grpc::ServerUnaryReactor* Refuse(ServiceContext& service,
                                 grpc::CallbackServerContext* context,
                                 const cox::v1::Caller& caller,
                                 std::string_view method) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = Admit(service, *context, caller, method);
  if (status.ok()) {
    status = absl::UnimplementedError(
        absl::StrCat(std::string(method), " is not supported by this run"));
  }
  reactor->Finish(ToGrpc(status));
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* ControlServiceImpl::Pause(
    grpc::CallbackServerContext* context, const cox::v1::PauseRequest* request,
    ControlResponse* response) {
  return Command(service_, context, request->caller(), "ControlService.Pause",
                 {ControlCommand::kPause, response});
}

grpc::ServerUnaryReactor* ControlServiceImpl::Resume(
    grpc::CallbackServerContext* context,
    const cox::v1::ResumeRequest* request, ControlResponse* response) {
  return Command(service_, context, request->caller(),
                 "ControlService.Resume", {ControlCommand::kResume, response});
}

grpc::ServerUnaryReactor* ControlServiceImpl::Stop(
    grpc::CallbackServerContext* context, const cox::v1::StopRequest* request,
    ControlResponse* response) {
  return Command(service_, context, request->caller(), "ControlService.Stop",
                 {ControlCommand::kStop, response});
}

grpc::ServerUnaryReactor* ControlServiceImpl::Scale(
    grpc::CallbackServerContext* context, const cox::v1::ScaleRequest* request,
    ControlResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "ControlService.Scale",
      [request, response](CoordinatorCore& core) -> absl::Status {
        constexpr int32_t kMaxReplicas = 4096;
        // Learner ranks are part of the numerics class: another number of them
        // is another run.
        if (request->role() != "actor" && request->role() != "reward") {
          return absl::InvalidArgumentError(
              absl::StrCat("role: expected actor or reward, found '",
                           request->role().substr(0, 64), "'"));
        }
        if (request->replicas() < 1 || request->replicas() > kMaxReplicas) {
          return absl::InvalidArgumentError(
              absl::StrCat("replicas: expected 1 to ", kMaxReplicas,
                           ", found ", request->replicas()));
        }
        core.Scale(request->role(), request->replicas());
        response->set_effective_step(0);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ControlServiceImpl::SetKlCoef(
    grpc::CallbackServerContext* context,
    const cox::v1::SetKlCoefRequest* request, ControlResponse*) {
  return Refuse(service_, context, request->caller(),
                "ControlService.SetKlCoef");
}

}  // namespace cox
