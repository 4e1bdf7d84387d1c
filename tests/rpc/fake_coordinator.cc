#include "tests/rpc/fake_coordinator.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "lib/base/hash.h"
#include "lib/rpc/proto_convert.h"
#include "lib/rpc/status_convert.h"

namespace cox::testing {

namespace v1 = cox::v1;

struct FakeCoordinator::State {
  Mutex mutex;
  CondVar changed;
  int64_t epoch = 1;
  std::set<std::string> sessions;
  int fail_count = 0;
  absl::Status fail_status;
  v1::Assignment assignment;
  std::deque<v1::LeasedUnit> pending;
  std::map<UnitId, std::pair<std::string, v1::LeasedUnit>> leases;
  std::map<UnitId, std::string> submissions;
  std::vector<UnitId> returned;
  std::map<std::string, std::vector<v1::Caller>> callers;
  std::vector<v1::RegisterRequest> registrations;
  std::vector<v1::HeartbeatRequest> heartbeats;
  std::set<std::string> held;
  std::set<std::string> drained;
  std::map<int64_t, v1::CommitStepRequest> commits;
  bool stop = false;

  // Counts the call; answers what every RPC answers first.
  grpc::Status Enter(const std::string& method, const v1::Caller& caller,
                     bool registering = false) {
    MutexLock lock(&mutex);
    callers[method].push_back(caller);
    if (fail_count > 0) {
      --fail_count;
      return ToGrpc(fail_status);
    }
    if (!caller.run_id().empty() && caller.run_id() != kFakeRunId) {
      return ToGrpc(absl::PermissionDeniedError("another run"));
    }
    if (registering) return grpc::Status::OK;
    if (!sessions.contains(caller.session())) {
      return ToGrpc(WithReason(absl::NotFoundError("unknown session"),
                               ErrorReason::kUnknownSession));
    }
    if (caller.epoch() < epoch) {
      return ToGrpc(WithReason(absl::FailedPreconditionError("old epoch"),
                               ErrorReason::kStaleEpoch));
    }
    return grpc::Status::OK;
  }
  // Waits in small slices, so that a cancelled call ends.
  void Wait(grpc::ServerContext* context, int64_t wait_ms,
            const std::function<bool()>& predicate) {
    for (int64_t waited = 0; waited < wait_ms; waited += 10) {
      if (context->IsCancelled()) return;
      MutexLock lock(&mutex);
      if (changed.WaitFor(mutex, absl::Milliseconds(10), predicate)) return;
    }
  }
};

#define FAKE_ENTER(method)                                        \
  if (grpc::Status entered = s->Enter(method, request->caller()); \
      !entered.ok()) {                                            \
    return entered;                                               \
  }

struct FakeServices {
  struct Run : v1::RunService::Service {
    FakeCoordinator* owner;
    FakeCoordinator::State* s;

    grpc::Status Register(grpc::ServerContext*,
                          const v1::RegisterRequest* request,
                          v1::RegisterResponse* response) override {
      if (auto entered = s->Enter("Register", request->caller(), true);
          !entered.ok()) {
        return entered;
      }
      MutexLock lock(&s->mutex);
      s->registrations.push_back(*request);
      s->sessions.insert(request->caller().session());
      *response = owner->run;
      response->set_run_id(kFakeRunId);
      response->set_epoch(s->epoch);
      s->changed.NotifyAll();
      return grpc::Status::OK;
    }
    grpc::Status Heartbeat(grpc::ServerContext*,
                           const v1::HeartbeatRequest* request,
                           v1::HeartbeatResponse* response) override {
      FAKE_ENTER("Heartbeat");
      MutexLock lock(&s->mutex);
      s->heartbeats.push_back(*request);
      response->set_epoch(s->epoch);
      response->set_stop(s->stop);
      s->changed.NotifyAll();
      return grpc::Status::OK;
    }
    grpc::Status GetAssignment(grpc::ServerContext* context,
                               const v1::GetAssignmentRequest* request,
                               v1::Assignment* response) override {
      FAKE_ENTER("GetAssignment");
      s->Wait(context, request->wait_ms(), [this, request] {
        return s->assignment.serial() != request->known_serial();
      });
      MutexLock lock(&s->mutex);
      *response = s->assignment;
      return grpc::Status::OK;
    }
    grpc::Status JoinGroup(grpc::ServerContext*,
                           const v1::JoinGroupRequest* request,
                           v1::JoinGroupResponse* response) override {
      FAKE_ENTER("JoinGroup");
      response->set_ready(true);
      response->set_generation(7);
      response->set_rendezvous(request->rendezvous());
      return grpc::Status::OK;
    }
    grpc::Status Drain(grpc::ServerContext*, const v1::DrainRequest* request,
                       v1::DrainResponse*) override {
      FAKE_ENTER("Drain");
      MutexLock lock(&s->mutex);
      s->drained.insert(request->caller().name());
      return grpc::Status::OK;
    }
    grpc::Status FetchFile(grpc::ServerContext*,
                           const v1::FetchFileRequest* request,
                           grpc::ServerWriter<v1::Chunk>* writer) override {
      FAKE_ENTER("FetchFile");
      const auto it = owner->files.find(request->name());
      if (it == owner->files.end()) {
        return ToGrpc(absl::NotFoundError("no such file"));
      }
      for (size_t i = 0; i < ChunkCount(it->second.size()); ++i) {
        writer->Write(MakeChunk(i << 20, it->second));
      }
      return grpc::Status::OK;
    }
  } run;

  struct Rollout : v1::RolloutService::Service {
    FakeCoordinator::State* s;

    grpc::Status LeaseUnits(grpc::ServerContext* context,
                            const v1::LeaseUnitsRequest* request,
                            v1::LeaseUnitsResponse* response) override {
      FAKE_ENTER("LeaseUnits");
      s->Wait(context, request->wait_ms(),
              [this] { return !s->pending.empty(); });
      MutexLock lock(&s->mutex);
      response->set_epoch(s->epoch);
      while (!s->pending.empty() && !context->IsCancelled() &&
             response->units_size() < request->max_units()) {
        v1::LeasedUnit unit = s->pending.front();
        s->pending.pop_front();
        unit.set_attempt(unit.attempt() + 1);
        *response->add_units() = unit;
        s->leases[*FromProto(unit.unit())] = {request->caller().session(),
                                              unit};
      }
      return grpc::Status::OK;
    }
    grpc::Status RenewLease(grpc::ServerContext*,
                            const v1::RenewLeaseRequest* request,
                            v1::RenewLeaseResponse* response) override {
      FAKE_ENTER("RenewLease");
      MutexLock lock(&s->mutex);
      for (const v1::UnitId& unit : request->units()) {
        const auto it = s->leases.find(*FromProto(unit));
        response->add_held(it != s->leases.end() &&
                           it->second.first == request->caller().session());
      }
      return grpc::Status::OK;
    }
    grpc::Status SubmitUnit(grpc::ServerContext*,
                            grpc::ServerReader<v1::SubmitUnitRequest>* reader,
                            v1::SubmitUnitResponse* response) override {
      v1::SubmitUnitRequest message;
      v1::SubmitHeader header;
      std::string payload;
      while (reader->Read(&message)) {
        if (message.has_header()) header = message.header();
        const absl::Status added =
            AppendChunk(message.chunk(), 64 << 20, &payload);
        if (!added.ok()) return ToGrpc(added);
      }
      if (auto entered = s->Enter("SubmitUnit", header.caller());
          !entered.ok()) {
        return entered;
      }
      if (Sha256Hex(payload) != header.payload_sha256() ||
          payload.size() != header.payload_bytes()) {
        return ToGrpc(absl::DataLossError("payload"));
      }
      MutexLock lock(&s->mutex);
      const UnitId unit = *FromProto(header.unit());
      s->leases.erase(unit);
      const auto [it, inserted] = s->submissions.emplace(unit, payload);
      response->set_outcome(inserted ? v1::SubmitUnitResponse::ACCEPTED
                            : it->second == payload
                                ? v1::SubmitUnitResponse::DUPLICATE
                                : v1::SubmitUnitResponse::ALREADY_CONSUMED);
      s->changed.NotifyAll();
      return grpc::Status::OK;
    }
    grpc::Status ReturnUnits(grpc::ServerContext*,
                             const v1::ReturnUnitsRequest* request,
                             v1::ReturnUnitsResponse*) override {
      FAKE_ENTER("ReturnUnits");
      MutexLock lock(&s->mutex);
      for (const v1::UnitId& unit : request->units()) {
        s->returned.push_back(*FromProto(unit));
        const auto it = s->leases.find(*FromProto(unit));
        if (it == s->leases.end()) continue;
        s->pending.push_back(it->second.second);
        s->leases.erase(it);
      }
      s->changed.NotifyAll();
      return grpc::Status::OK;
    }
  } rollout;

  struct Experience : v1::ExperienceService::Service {
    FakeCoordinator* owner;
    FakeCoordinator::State* s;

    grpc::Status TakeBatch(
        grpc::ServerContext*, const v1::TakeBatchRequest* request,
        grpc::ServerWriter<v1::TakeBatchResponse>* writer) override {
      FAKE_ENTER("TakeBatch");
      const auto it = owner->batches.find(request->step());
      if (it == owner->batches.end()) {
        return ToGrpc(absl::UnavailableError("batch is not complete"));
      }
      for (const auto& [unit, payload] : it->second) {
        std::string bytes = payload;
        if (owner->corrupt_batches) bytes.back() ^= 1;
        for (size_t i = 0; i < ChunkCount(payload.size()); ++i) {
          v1::TakeBatchResponse message;
          if (i == 0) {
            ToProto(unit, message.mutable_header()->mutable_unit());
            message.mutable_header()->set_payload_sha256(Sha256Hex(payload));
            message.mutable_header()->set_payload_bytes(payload.size());
          }
          *message.mutable_chunk() = MakeChunk(i << 20, bytes);
          writer->Write(message);
        }
      }
      v1::TakeBatchResponse last;
      last.set_batch_sha256("b47c4");
      writer->Write(last);
      return grpc::Status::OK;
    }
    grpc::Status CommitStep(grpc::ServerContext*,
                            const v1::CommitStepRequest* request,
                            v1::CommitStepResponse* response) override {
      FAKE_ENTER("CommitStep");
      MutexLock lock(&s->mutex);
      response->set_replayed(
          !s->commits.emplace(request->step(), *request).second);
      return grpc::Status::OK;
    }
  } experience;

  struct Version : v1::VersionService::Service {
    FakeCoordinator::State* s;
    v1::VersionSource published;

    grpc::Status PublishVersion(grpc::ServerContext*,
                                const v1::PublishVersionRequest* request,
                                v1::PublishVersionResponse*) override {
      FAKE_ENTER("PublishVersion");
      MutexLock lock(&s->mutex);
      *published.mutable_ref() = request->ref();
      published.set_manifest(request->manifest());
      published.clear_addresses();
      published.add_addresses(request->address());
      return grpc::Status::OK;
    }
    grpc::Status WatchVersions(
        grpc::ServerContext*, const v1::WatchVersionsRequest* request,
        grpc::ServerWriter<v1::VersionSource>* writer) override {
      FAKE_ENTER("WatchVersions");
      v1::VersionSource now;
      {
        MutexLock lock(&s->mutex);
        now = published;
      }
      writer->Write(now);
      return grpc::Status::OK;
    }
    grpc::Status ReportHeld(grpc::ServerContext*,
                            const v1::ReportHeldRequest* request,
                            v1::ReportHeldResponse*) override {
      FAKE_ENTER("ReportHeld");
      MutexLock lock(&s->mutex);
      s->held.insert(request->content_hashes().begin(),
                     request->content_hashes().end());
      s->changed.NotifyAll();
      return grpc::Status::OK;
    }
  } version;

  struct Checkpoint : v1::CheckpointService::Service {
    FakeCoordinator::State* s;
    grpc::Status BeginCheckpoint(grpc::ServerContext*,
                                 const v1::BeginCheckpointRequest* request,
                                 v1::BeginCheckpointResponse* r) override {
      FAKE_ENTER("BeginCheckpoint");
      r->set_directory(
          absl::StrCat("/ckpt/", request->stage(), "/", request->step()));
      return grpc::Status::OK;
    }
    grpc::Status CommitCheckpoint(grpc::ServerContext*,
                                  const v1::CommitCheckpointRequest* request,
                                  v1::CommitCheckpointResponse* r) override {
      FAKE_ENTER("CommitCheckpoint");
      r->add_delete_directories("/ckpt/old");
      return grpc::Status::OK;
    }
    grpc::Status LatestCheckpoint(grpc::ServerContext*,
                                  const v1::LatestCheckpointRequest* request,
                                  v1::LatestCheckpointResponse* r) override {
      FAKE_ENTER("LatestCheckpoint");
      r->add_checkpoints()->set_step(12);
      return grpc::Status::OK;
    }
  } checkpoint;

  struct Monitor : v1::MonitorService::Service {
    grpc::Status Status(grpc::ServerContext*, const v1::StatusRequest* request,
                        v1::StatusResponse* response) override {
      response->set_run_id(request->caller().run_id());
      response->set_state("running");
      return grpc::Status::OK;
    }
  } monitor;

  struct Control : v1::ControlService::Service {
    grpc::Status SetKlCoef(grpc::ServerContext*,
                           const v1::SetKlCoefRequest* request,
                           v1::ControlResponse* response) override {
      if (request->caller().role() != "operator") {
        return ToGrpc(absl::PermissionDeniedError("role"));
      }
      response->set_effective_step(request->kl_coef() > 0 ? 5 : 0);
      return grpc::Status::OK;
    }
  } control;
};

#undef FAKE_ENTER

FakeCoordinator::FakeCoordinator(int port)
    : state_(std::make_unique<State>()),
      services_(std::make_unique<FakeServices>()) {
  run.mutable_config()->mutable_limits()->set_heartbeat_s(0.05);
  run.mutable_config()->mutable_limits()->set_lease_s(10);
  run.mutable_config()->mutable_limits()->set_coordinator_patience_s(20);
  run.mutable_config()->mutable_limits()->set_rpc_max_backoff_s(0.05);
  State* s = state_.get();
  services_->run.owner = services_->experience.owner = this;
  services_->run.s = services_->rollout.s = services_->experience.s = s;
  services_->version.s = services_->checkpoint.s = s;
  auto server = RpcServer::Start(
      {.bind = absl::StrCat("127.0.0.1:", port),
       .services = {&services_->run, &services_->rollout,
                    &services_->experience, &services_->version,
                    &services_->checkpoint, &services_->monitor,
                    &services_->control}});
  COX_CHECK(server.ok());
  server_ = std::move(*server);
}
FakeCoordinator::~FakeCoordinator() = default;

const std::string& FakeCoordinator::address() const {
  return server_->address();
}
int FakeCoordinator::port() const { return server_->port(); }

void FakeCoordinator::Restart() {
  MutexLock lock(&state_->mutex);
  ++state_->epoch;
  state_->sessions.clear();
  for (auto& [unit, lease] : state_->leases) {
    state_->pending.push_back(lease.second);
  }
  state_->leases.clear();
}
void FakeCoordinator::FailNext(int count, absl::Status status) {
  MutexLock lock(&state_->mutex);
  state_->fail_count = count;
  state_->fail_status = std::move(status);
}
void FakeCoordinator::SetAssignment(v1::Assignment assignment) {
  MutexLock lock(&state_->mutex);
  assignment.set_serial(state_->assignment.serial() + 1);
  state_->assignment = std::move(assignment);
  state_->changed.NotifyAll();
}
void FakeCoordinator::AddUnit(v1::LeasedUnit unit) {
  MutexLock lock(&state_->mutex);
  state_->pending.push_back(std::move(unit));
  state_->changed.NotifyAll();
}
void FakeCoordinator::RevokeLeases() {
  MutexLock lock(&state_->mutex);
  for (auto& [unit, lease] : state_->leases) {
    state_->pending.push_back(lease.second);
  }
  state_->leases.clear();
}
void FakeCoordinator::RequestStop() {
  MutexLock lock(&state_->mutex);
  state_->stop = true;
}

bool FakeCoordinator::WaitForSubmissions(size_t count) {
  MutexLock lock(&state_->mutex);
  return state_->changed.WaitFor(
      state_->mutex, absl::Seconds(20),
      [this, count] { return state_->submissions.size() >= count; });
}
bool FakeCoordinator::WaitForRegistrations(int count) {
  MutexLock lock(&state_->mutex);
  return state_->changed.WaitFor(
      state_->mutex, absl::Seconds(20), [this, count] {
        return static_cast<int>(state_->registrations.size()) >= count;
      });
}
bool FakeCoordinator::WaitForHeld(const std::string& content_hash) {
  MutexLock lock(&state_->mutex);
  return state_->changed.WaitFor(state_->mutex, absl::Seconds(20), [&] {
    return state_->held.contains(content_hash);
  });
}
std::map<UnitId, std::string> FakeCoordinator::submissions() const {
  MutexLock lock(&state_->mutex);
  return state_->submissions;
}
std::vector<UnitId> FakeCoordinator::returned() const {
  MutexLock lock(&state_->mutex);
  return state_->returned;
}
std::vector<v1::Caller> FakeCoordinator::callers(
    const std::string& method) const {
  MutexLock lock(&state_->mutex);
  return state_->callers[method];
}
std::vector<v1::RegisterRequest> FakeCoordinator::registrations() const {
  MutexLock lock(&state_->mutex);
  return state_->registrations;
}
std::vector<v1::HeartbeatRequest> FakeCoordinator::heartbeats() const {
  MutexLock lock(&state_->mutex);
  return state_->heartbeats;
}
std::set<std::string> FakeCoordinator::drained() const {
  MutexLock lock(&state_->mutex);
  return state_->drained;
}
int64_t FakeCoordinator::epoch() const {
  MutexLock lock(&state_->mutex);
  return state_->epoch;
}

}  // namespace cox::testing
