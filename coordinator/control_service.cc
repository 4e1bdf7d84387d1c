#include "coordinator/control_service.h"

#include <cmath>

namespace cox {
namespace {

using cox::v1::ControlResponse;

grpc::ServerUnaryReactor* Command(
    ServiceContext& service, grpc::CallbackServerContext* context,
    const cox::v1::Caller& caller, std::string_view method,
    std::pair<ControlCommand, ControlResponse*> command) {
  return RunUnary(
      service, context, caller, method,
      [command](CoordinatorCore& core) -> absl::Status {
        command.second->set_effective_step(core.Control(command.first));
        return absl::OkStatus();
      });
}

}  // namespace

grpc::ServerUnaryReactor* ControlServiceImpl::Pause(
    grpc::CallbackServerContext* context, const cox::v1::PauseRequest* request,
    ControlResponse* response) {
  return Command(service_, context, request->caller(), "ControlService.Pause",
                 {ControlCommand::kPause, response});
}

grpc::ServerUnaryReactor* ControlServiceImpl::Resume(
    grpc::CallbackServerContext* context, const cox::v1::ResumeRequest* request,
    ControlResponse* response) {
  return Command(service_, context, request->caller(), "ControlService.Resume",
                 {ControlCommand::kResume, response});
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
              absl::StrCat("replicas: expected 1 to ", kMaxReplicas, ", found ",
                           request->replicas()));
        }
        core.Scale(request->role(), request->replicas());
        response->set_effective_step(0);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ControlServiceImpl::SetKlCoef(
    grpc::CallbackServerContext* context,
    const cox::v1::SetKlCoefRequest* request, ControlResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "ControlService.SetKlCoef",
      [this, request, response](CoordinatorCore& core) -> absl::Status {
        const double value = request->kl_coef();
        if (!std::isfinite(value) || value < 0) {
          return absl::InvalidArgumentError(absl::StrCat(
              "kl_coef: expected a number of at least 0, found ", value));
        }
        const cox::v1::PpoSettings& ppo = service_.run->config.ppo();
        // Without a penalty from the start, no rank looks at the reference.
        if (ppo.kl_coef() == 0 && ppo.kl_loss_coef() == 0) {
          return absl::FailedPreconditionError(
              "this run was started without a KL penalty (ppo.kl_coef is 0)");
        }
        if (core.done() ||
            core.plan().stage(core.current_stage()).kind != StageKind::kPpo) {
          return absl::FailedPreconditionError(
              "kl_coef: stage ppo is not running");
        }
        response->set_effective_step(
            core.Control(ControlCommand::kKlCoef, value));
        return absl::OkStatus();
      });
}

}  // namespace cox
