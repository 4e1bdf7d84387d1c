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
    ControlResponse*) {
  return Refuse(service_, context, request->caller(), "ControlService.Scale");
}

grpc::ServerUnaryReactor* ControlServiceImpl::SetKlCoef(
    grpc::CallbackServerContext* context,
    const cox::v1::SetKlCoefRequest* request, ControlResponse*) {
  return Refuse(service_, context, request->caller(),
                "ControlService.SetKlCoef");
}

}  // namespace cox
