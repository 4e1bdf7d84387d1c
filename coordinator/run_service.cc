#include "coordinator/run_service.h"

#include <algorithm>
#include <utility>

#include "coordinator/wire_service.h"
#include "lib/base/hash.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"

namespace cox {
namespace {

using cox::v1::Assignment;

Assignment::Kind ToWire(AssignmentKind kind) {
  switch (kind) {
    case AssignmentKind::kWait:
      return Assignment::WAIT;
    case AssignmentKind::kTrain:
      return Assignment::TRAIN;
    case AssignmentKind::kServe:
      return Assignment::SERVE;
    case AssignmentKind::kDone:
      return Assignment::DONE;
    case AssignmentKind::kStop:
      return Assignment::STOP;
  }
  return Assignment::WAIT;
}

void FillAssignment(const AssignmentData& a, Assignment* out) {
  out->Clear();
  out->set_serial(a.serial);
  out->set_kind(ToWire(a.kind));
  out->set_stage(a.stage);
  out->set_stage_kind(a.stage_kind);
  out->set_last_committed(a.last_committed);
  out->set_total_steps(a.total_steps);
  if (a.resume.has_value()) {
    FillCheckpoint(*a.resume, out->mutable_resume());
  }
  if (a.policy.has_value()) {
    FillCheckpoint(*a.policy, out->mutable_policy());
  }
  if (a.reward.has_value()) {
    FillCheckpoint(*a.reward, out->mutable_reward());
  }
  for (const PublishOrderData& order : a.publish) {
    cox::v1::PublishOrder* wire = out->add_publish();
    wire->mutable_ref()->set_model(order.model);
    ToProto(order.version, wire->mutable_ref()->mutable_version());
    wire->mutable_ref()->set_content_hash(order.content_hash);
    if (order.checkpoint.has_value()) {
      FillCheckpoint(*order.checkpoint, wire->mutable_checkpoint());
    }
    wire->set_folder(order.folder);
  }
  for (const SourceData& source : a.models) {
    FillSource(source, out->add_models());
  }
}

// Sends a file of the run, read on the I/O thread.
class FileStream : public grpc::ServerWriteReactor<cox::v1::Chunk> {
 public:
  explicit FileStream(ServiceContext& service) : service_(service) {}
  void Start(const std::string& path) {
    const bool posted = service_.host->PostIo([this, path] {
      absl::StatusOr<std::string> bytes = service_.fs->ReadAll(path);
      if (!bytes.ok()) {
        Finish(ToGrpc(bytes.status()));
        return;
      }
      bytes_ = *std::move(bytes);
      Next();
    });
    if (!posted) {
      Finish(ToGrpc(BusyError()));
    }
  }
  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "caller is gone"));
    } else if (offset_ == bytes_.size()) {
      Finish(grpc::Status::OK);
    } else {
      Next();
    }
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    chunk_ = MakeChunk(offset_, bytes_);
    offset_ += chunk_.data().size();
    StartWrite(&chunk_);
  }

  ServiceContext& service_;
  std::string bytes_;
  size_t offset_ = 0;
  cox::v1::Chunk chunk_;
};

}  // namespace

grpc::ServerUnaryReactor* RunServiceImpl::Register(
    grpc::CallbackServerContext* context,
    const cox::v1::RegisterRequest* request,
    cox::v1::RegisterResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "RunService.Register",
      [this, request, response](CoordinatorCore& core) -> absl::Status {
        RegisterEvent event;
        event.caller = ToCore(request->caller());
        event.address = request->address();
        event.numerics_class = request->numerics_class();
        event.rank = request->rank();
        if (event.address.size() > 512 || event.numerics_class.size() > 4096) {
          return absl::InvalidArgumentError(
              "address or numerics_class is too long");
        }
        COX_RETURN_IF_ERROR(core.Register(event));
        const PreparedRun& run = *service_.run;
        response->set_epoch(core.epoch().value);
        response->set_run_id(run.run_id);
        *response->mutable_config() = run.config;
        response->set_config_hash(run.config_hash);
        response->set_tokenizer_sha256(run.tokenizer_sha256);
        for (const int32_t id : run.eos_ids) {
          response->add_eos_ids(id);
        }
        response->set_pad_id(run.pad_id);
        response->set_vocab_size(run.vocab_size);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* RunServiceImpl::Heartbeat(
    grpc::CallbackServerContext* context,
    const cox::v1::HeartbeatRequest* request,
    cox::v1::HeartbeatResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "RunService.Heartbeat",
      [this, request, response](CoordinatorCore& core) -> absl::Status {
        constexpr int kMaxHeld = 4096;
        if (request->held_size() > kMaxHeld || request->state().size() > 512 ||
            request->waiting_for().size() > 512) {
          return absl::InvalidArgumentError("heartbeat: a field is too long");
        }
        HeartbeatEvent event;
        event.caller = ToCore(request->caller());
        event.state = request->state();
        event.state_ms = request->state_ms();
        event.waiting_for = request->waiting_for();
        event.held = {request->held().begin(), request->held().end()};
        event.rss_bytes = request->rss_bytes();
        COX_ASSIGN_OR_RETURN(const bool stop, core.Heartbeat(event));
        if (service_.traces != nullptr && !request->spans().empty()) {
          COX_RETURN_IF_ERROR(
              service_.traces->Add(request->caller().name(), request->spans()));
        }
        response->set_epoch(core.epoch().value);
        response->set_stop(stop);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* RunServiceImpl::GetAssignment(
    grpc::CallbackServerContext* context,
    const cox::v1::GetAssignmentRequest* request, Assignment* response) {
  return RunPoll(
      service_, context, request->caller(), "RunService.GetAssignment",
      request->wait_ms(), kOtherChange,
      [request, response](CoordinatorCore& core) -> absl::StatusOr<bool> {
        COX_ASSIGN_OR_RETURN(const AssignmentData a,
                             core.GetAssignment(ToCore(request->caller())));
        FillAssignment(a, response);
        return a.serial != request->known_serial();
      });
}

grpc::ServerUnaryReactor* RunServiceImpl::JoinGroup(
    grpc::CallbackServerContext* context,
    const cox::v1::JoinGroupRequest* request,
    cox::v1::JoinGroupResponse* response) {
  return RunPoll(
      service_, context, request->caller(), "RunService.JoinGroup",
      request->wait_ms(), kOtherChange,
      [request, response](CoordinatorCore& core) -> absl::StatusOr<bool> {
        COX_ASSIGN_OR_RETURN(
            const JoinReply reply,
            core.Join({ToCore(request->caller()), request->rank(),
                       request->world_size(), request->rendezvous()}));
        response->set_ready(reply.ready);
        response->set_generation(reply.generation.value);
        response->set_rendezvous(reply.rendezvous);
        return reply.ready;
      });
}

grpc::ServerUnaryReactor* RunServiceImpl::Drain(
    grpc::CallbackServerContext* context, const cox::v1::DrainRequest* request,
    cox::v1::DrainResponse*) {
  return RunUnary(service_, context, request->caller(), "RunService.Drain",
                  [request](CoordinatorCore& core) {
                    return core.Drain(ToCore(request->caller()),
                                      request->reason().substr(0, 512));
                  });
}

grpc::ServerWriteReactor<cox::v1::Chunk>* RunServiceImpl::FetchFile(
    grpc::CallbackServerContext* context,
    const cox::v1::FetchFileRequest* request) {
  auto* stream = new FileStream(service_);
  absl::Status status =
      Admit(service_, *context, request->caller(), "RunService.FetchFile");
  const std::string& name = request->name();
  if (status.ok() && name != "tokenizer.json" &&
      name != "tokenizer_config.json" && name != "comparisons.jsonl" &&
      name != "comparisons.heldout.jsonl") {
    status = absl::NotFoundError("FetchFile: no such file of the run");
  }
  if (!status.ok()) {
    stream->Finish(ToGrpc(status));
  } else {
    stream->Start(JoinPath(service_.run->run_dir, name));
  }
  return stream;
}

}  // namespace cox
