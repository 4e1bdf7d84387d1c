#include "lib/rpc/coordinator_client.h"

#include <unistd.h>

#include <algorithm>

#include "cox/v1/checkpoint.grpc.pb.h"
#include "cox/v1/experience.grpc.pb.h"
#include "cox/v1/rollout.grpc.pb.h"
#include "cox/v1/run.grpc.pb.h"
#include "cox/v1/version.grpc.pb.h"
#include "lib/base/failpoint.h"
#include "lib/base/hash.h"
#include "lib/base/sync.h"
#include "lib/rpc/call_core.h"
#include "lib/rpc/error_reason.h"
#include "lib/rpc/limits.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

// Of one payload, when bytes change on the way.
constexpr int kMaxTransfers = 3;

absl::Duration LongPoll(absl::Duration wait) {
  return std::clamp(wait, absl::ZeroDuration(), kMaxLongPoll);
}

void SetUnits(const std::vector<UnitId>& units,
              google::protobuf::RepeatedPtrField<v1::UnitId>* out) {
  for (const UnitId& unit : units) ToProto(unit, out->Add());
}

// Puts the messages of TakeBatch together. Its status stops the stream.
class BatchReader {
 public:
  absl::Status Add(const v1::TakeBatchResponse& message) {
    if (message.has_header()) {
      COX_RETURN_IF_ERROR(EndUnit());
      COX_ASSIGN_OR_RETURN(const UnitId unit,
                           FromProto(message.header().unit()));
      if (message.header().payload_bytes() > kMaxUnitBytes) {
        return absl::InvalidArgumentError("header.payload_bytes: too large");
      }
      header_ = message.header();
      open_ = true;
      batch_.units.emplace_back(unit, std::string());
    }
    if (message.has_chunk()) {
      if (!open_) return absl::InvalidArgumentError("chunk before a header");
      COX_RETURN_IF_ERROR(AppendChunk(message.chunk(), header_.payload_bytes(),
                                      &batch_.units.back().second));
    }
    if (!message.batch_sha256().empty()) {
      batch_.batch_sha256 = message.batch_sha256();
      if (message.has_kl_coef()) batch_.kl_coef = message.kl_coef();
    }
    return absl::OkStatus();
  }
  absl::StatusOr<TakenBatch> Finish() {
    COX_RETURN_IF_ERROR(EndUnit());
    if (batch_.batch_sha256.empty()) {
      return absl::DataLossError("batch: the stream ended without its hash");
    }
    return std::move(batch_);
  }

 private:
  absl::Status EndUnit() {
    if (!open_) return absl::OkStatus();
    open_ = false;
    const auto& [unit, payload] = batch_.units.back();
    if (payload.size() != header_.payload_bytes() ||
        Sha256Hex(payload) != header_.payload_sha256()) {
      return absl::DataLossError(absl::StrCat(
          "unit ", unit.ToString(), ": expected ", header_.payload_bytes(),
          " bytes with SHA-256 ", header_.payload_sha256(), ", found ",
          payload.size(), " with ", Sha256Hex(payload)));
    }
    return absl::OkStatus();
  }

  v1::UnitHeader header_;
  bool open_ = false;
  TakenBatch batch_;
};

}  // namespace

class CoordinatorClient::Impl {
 public:
  explicit Impl(CoordinatorClientOptions options)
      : options_(std::move(options)),
        core_(
            {.address = options_.address,
             .caller = {.run_id = options_.run_id,
                        .session = options_.session.empty() ? NewSessionId()
                                                            : options_.session,
                        .role = options_.role,
                        .name = options_.name,
                        .epoch = {},
                        .generation = {}},
             .patience = options_.patience,
             .max_backoff = options_.max_backoff,
             .reregister = [this] { return Register().status(); }}) {}

  CallCore& core() { return core_; }

  // A unary RPC: `Service`'s `method` with `request`, whose caller is filled
  // in at every attempt.
  template <typename Service, typename Request, typename Response>
  absl::StatusOr<Response> Unary(
      const CallShape& shape, Request request,
      grpc::Status (Service::Stub::*method)(grpc::ClientContext*,
                                            const Request&, Response*)) {
    Response response;
    COX_RETURN_IF_ERROR(
        core_.Call(shape, [&](const std::shared_ptr<grpc::Channel>& channel,
                              grpc::ClientContext* context) {
          core_.FillCaller(request.mutable_caller());
          response.Clear();
          auto stub = Service::NewStub(channel);
          return (stub.get()->*method)(context, request, &response);
        }));
    return response;
  }

  absl::StatusOr<v1::RegisterResponse> Register() {
    v1::RegisterRequest request;
    {
      MutexLock lock(&mutex_);
      request.set_address(options_.own_address);
      request.set_numerics_class(options_.numerics_class);
      request.set_rank(options_.rank);
    }
    request.set_pid(getpid());
    v1::RegisterResponse response;
    COX_RETURN_IF_ERROR(
        core_.Call({.method = "RunService.Register",
                    .extra = absl::ZeroDuration(),
                    .registering = true},
                   [&](const std::shared_ptr<grpc::Channel>& channel,
                       grpc::ClientContext* context) {
                     core_.FillCaller(request.mutable_caller());
                     // Registering is how the epoch is learned.
                     request.mutable_caller()->set_epoch(0);
                     response.Clear();
                     return v1::RunService::NewStub(channel)->Register(
                         context, request, &response);
                   }));
    core_.LearnRunId(response.run_id());
    core_.SetEpoch(response.epoch());
    const v1::LimitSettings& limits = response.config().limits();
    if (limits.coordinator_patience_s() > 0 && limits.rpc_max_backoff_s() > 0) {
      core_.SetLimits(absl::Seconds(limits.coordinator_patience_s()),
                      absl::Seconds(limits.rpc_max_backoff_s()));
    }
    return response;
  }

  void set_numerics_class(std::string numerics_class) {
    MutexLock lock(&mutex_);
    options_.numerics_class = std::move(numerics_class);
  }
  void set_own_address(std::string own_address) {
    MutexLock lock(&mutex_);
    options_.own_address = std::move(own_address);
  }

 private:
  Mutex mutex_;
  CoordinatorClientOptions options_;  // the two setters' members: mutex_
  CallCore core_;
};

CoordinatorClient::CoordinatorClient(CoordinatorClientOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
CoordinatorClient::~CoordinatorClient() = default;

absl::StatusOr<v1::RegisterResponse> CoordinatorClient::Register() {
  return impl_->Register();
}

absl::StatusOr<v1::HeartbeatResponse> CoordinatorClient::Heartbeat(
    v1::HeartbeatRequest request) {
  COX_ASSIGN_OR_RETURN(
      v1::HeartbeatResponse response,
      impl_->Unary<v1::RunService>({.method = "RunService.Heartbeat",
                                    .extra = absl::ZeroDuration(),
                                    .once = true},
                                   std::move(request),
                                   &v1::RunService::Stub::Heartbeat));
  impl_->core().LearnEpoch(response.epoch());
  return response;
}

absl::StatusOr<v1::Assignment> CoordinatorClient::GetAssignment(
    int64_t known_serial, absl::Duration wait) {
  wait = LongPoll(wait);
  v1::GetAssignmentRequest request;
  request.set_known_serial(known_serial);
  request.set_wait_ms(absl::ToInt64Milliseconds(wait));
  return impl_->Unary<v1::RunService>(
      {.method = "RunService.GetAssignment", .extra = wait, .waits = true},
      std::move(request), &v1::RunService::Stub::GetAssignment);
}

absl::StatusOr<v1::JoinGroupResponse> CoordinatorClient::JoinGroup(
    int32_t rank, int32_t world_size, const std::string& rendezvous,
    absl::Duration wait) {
  wait = LongPoll(wait);
  v1::JoinGroupRequest request;
  request.set_rank(rank);
  request.set_world_size(world_size);
  request.set_rendezvous(rendezvous);
  request.set_wait_ms(absl::ToInt64Milliseconds(wait));
  COX_ASSIGN_OR_RETURN(
      v1::JoinGroupResponse response,
      impl_->Unary<v1::RunService>(
          {.method = "RunService.JoinGroup", .extra = wait, .waits = true},
          std::move(request), &v1::RunService::Stub::JoinGroup));
  if (response.ready()) {
    impl_->core().SetGeneration(Generation{response.generation()});
  }
  return response;
}

absl::Status CoordinatorClient::Drain(const std::string& reason) {
  v1::DrainRequest request;
  request.set_reason(reason);
  return impl_
      ->Unary<v1::RunService>({.method = "RunService.Drain",
                               .extra = absl::ZeroDuration(),
                               .registering = true},
                              std::move(request), &v1::RunService::Stub::Drain)
      .status();
}

absl::StatusOr<FetchedFile> CoordinatorClient::FetchFile(
    const std::string& name) {
  FetchedFile file;
  absl::Status stream;
  v1::FetchFileRequest request;
  request.set_name(name);
  COX_RETURN_IF_ERROR(impl_->core().Call(
      {.method = "RunService.FetchFile",
       .extra = absl::ZeroDuration(),
       .not_found_is_answer = true},
      [&](const std::shared_ptr<grpc::Channel>& channel,
          grpc::ClientContext* context) {
        impl_->core().FillCaller(request.mutable_caller());
        file.bytes.clear();
        stream = absl::OkStatus();
        auto stub = v1::RunService::NewStub(channel);
        auto reader = stub->FetchFile(context, request);
        v1::Chunk chunk;
        while (reader->Read(&chunk)) {
          stream = AppendChunk(chunk, kMaxFileBytes, &file.bytes);
          if (stream.ok()) continue;
          context->TryCancel();
          static_cast<void>(reader->Finish());
          return grpc::Status::OK;
        }
        return reader->Finish();
      }));
  COX_RETURN_IF_ERROR(Annotate(stream, name));
  file.sha256 = Sha256Hex(file.bytes);
  return file;
}

absl::StatusOr<v1::LeaseUnitsResponse> CoordinatorClient::LeaseUnits(
    int32_t max_units, absl::Duration wait) {
  wait = LongPoll(wait);
  v1::LeaseUnitsRequest request;
  request.set_max_units(std::clamp(max_units, 1, kMaxUnitsPerLease));
  request.set_wait_ms(absl::ToInt64Milliseconds(wait));
  COX_ASSIGN_OR_RETURN(
      v1::LeaseUnitsResponse response,
      impl_->Unary<v1::RolloutService>(
          {.method = "RolloutService.LeaseUnits", .extra = wait, .waits = true},
          std::move(request), &v1::RolloutService::Stub::LeaseUnits));
  impl_->core().LearnEpoch(response.epoch());
  return response;
}

absl::StatusOr<std::vector<bool>> CoordinatorClient::RenewLease(
    const std::vector<UnitId>& units) {
  v1::RenewLeaseRequest request;
  SetUnits(units, request.mutable_units());
  COX_ASSIGN_OR_RETURN(
      v1::RenewLeaseResponse response,
      impl_->Unary<v1::RolloutService>({.method = "RolloutService.RenewLease",
                                        .extra = absl::ZeroDuration()},
                                       std::move(request),
                                       &v1::RolloutService::Stub::RenewLease));
  if (static_cast<size_t>(response.held_size()) != units.size()) {
    return absl::InternalError(absl::StrCat("RenewLease: expected ",
                                            units.size(), " answers, found ",
                                            response.held_size()));
  }
  return std::vector<bool>(response.held().begin(), response.held().end());
}

absl::StatusOr<SubmitOutcome> CoordinatorClient::SubmitUnit(
    const SubmitUnitOptions& options) {
  v1::SubmitHeader header;
  ToProto(options.unit, header.mutable_unit());
  header.set_attempt(options.attempt);
  header.set_policy_hash(options.policy_hash);
  header.set_payload_sha256(Sha256Hex(options.payload));
  header.set_payload_bytes(options.payload.size());
  v1::SubmitUnitResponse response;
  const auto send = [&] {
    return impl_->core().Call(
        {.method = "RolloutService.SubmitUnit",
         .extra = TransferTime(options.payload.size())},
        [&](const std::shared_ptr<grpc::Channel>& channel,
            grpc::ClientContext* context) {
          response.Clear();
          auto stub = v1::RolloutService::NewStub(channel);
          auto writer = stub->SubmitUnit(context, &response);
          for (size_t i = 0; i < ChunkCount(options.payload.size()); ++i) {
            v1::SubmitUnitRequest message;
            if (i == 0) {
              *message.mutable_header() = header;
              impl_->core().FillCaller(
                  message.mutable_header()->mutable_caller());
            }
            *message.mutable_chunk() =
                MakeChunk(i * kChunkBytes, options.payload);
            if (HitFailpoint("unit.payload") == FailAction::kFlip) {
              message.mutable_chunk()->mutable_data()->front() ^= 0x10;
            }
            if (!writer->Write(message)) break;  // Finish says why
          }
          writer->WritesDone();
          return writer->Finish();
        });
  };
  absl::Status sent = send();
  for (int i = 1;
       i < kMaxTransfers && ReasonOf(sent) == ErrorReason::kDamagedOnTheWay;
       ++i) {
    sent = send();
  }
  COX_RETURN_IF_ERROR(sent);
  switch (response.outcome()) {
    case v1::SubmitUnitResponse::ACCEPTED:
      return SubmitOutcome::kAccepted;
    case v1::SubmitUnitResponse::DUPLICATE:
      return SubmitOutcome::kDuplicate;
    case v1::SubmitUnitResponse::ALREADY_CONSUMED:
      return SubmitOutcome::kAlreadyConsumed;
    default:
      return absl::InternalError(
          absl::StrCat("SubmitUnit: unknown outcome ", response.outcome()));
  }
}

absl::Status CoordinatorClient::ReturnUnits(const std::vector<UnitId>& units,
                                            const std::string& failed) {
  v1::ReturnUnitsRequest request;
  request.set_failed(failed);
  SetUnits(units, request.mutable_units());
  return impl_
      ->Unary<v1::RolloutService>({.method = "RolloutService.ReturnUnits",
                                   .extra = absl::ZeroDuration()},
                                  std::move(request),
                                  &v1::RolloutService::Stub::ReturnUnits)
      .status();
}

absl::StatusOr<TakenBatch> CoordinatorClient::TakeBatch(int32_t stage,
                                                        int64_t step,
                                                        int32_t rank,
                                                        absl::Duration wait) {
  wait = LongPoll(wait);
  v1::TakeBatchRequest request;
  request.set_stage(stage);
  request.set_step(step);
  request.set_rank(rank);
  request.set_wait_ms(absl::ToInt64Milliseconds(wait));
  absl::Status stream;
  BatchReader batch;
  const auto receive = [&] {
    return impl_->core().Call(
        {.method = "ExperienceService.TakeBatch",
         .extra = wait,
         .waits = true,
         .unavailable_is_answer = true},
        [&](const std::shared_ptr<grpc::Channel>& channel,
            grpc::ClientContext* context) {
          impl_->core().FillCaller(request.mutable_caller());
          batch = BatchReader();
          stream = absl::OkStatus();
          auto stub = v1::ExperienceService::NewStub(channel);
          auto reader = stub->TakeBatch(context, request);
          v1::TakeBatchResponse message;
          while (reader->Read(&message)) {
            stream = batch.Add(message);
            if (stream.ok()) continue;
            context->TryCancel();
            static_cast<void>(reader->Finish());
            return grpc::Status::OK;
          }
          return reader->Finish();
        });
  };
  COX_RETURN_IF_ERROR(receive());
  for (int i = 1; i < kMaxTransfers && absl::IsDataLoss(stream); ++i) {
    COX_RETURN_IF_ERROR(receive());
  }
  COX_RETURN_IF_ERROR(stream);
  return batch.Finish();
}

absl::StatusOr<bool> CoordinatorClient::CommitStep(
    v1::CommitStepRequest request) {
  COX_ASSIGN_OR_RETURN(
      v1::CommitStepResponse response,
      impl_->Unary<v1::ExperienceService>(
          {.method = "ExperienceService.CommitStep",
           .extra = absl::ZeroDuration()},
          std::move(request), &v1::ExperienceService::Stub::CommitStep));
  return response.replayed();
}

absl::Status CoordinatorClient::PublishVersion(const VersionSource& source,
                                               const std::string& address) {
  v1::VersionSource proto;
  ToProto(source, &proto);
  v1::PublishVersionRequest request;
  *request.mutable_ref() = proto.ref();
  request.set_manifest(source.manifest);
  request.set_address(address);
  *request.mutable_canary() = proto.canary();
  request.set_group_address(source.group.address);
  return impl_
      ->Unary<v1::VersionService>({.method = "VersionService.PublishVersion",
                                   .extra = absl::ZeroDuration()},
                                  std::move(request),
                                  &v1::VersionService::Stub::PublishVersion)
      .status();
}

absl::Status CoordinatorClient::WatchVersions(
    const std::string& model,
    const std::function<bool(const VersionSource&)>& on_target) {
  v1::WatchVersionsRequest request;
  request.set_model(model);
  bool done = false;
  while (!done) {
    absl::Status stream;
    // A stream that ends in order has reached its hour: open it again.
    const absl::Status status = impl_->core().Call(
        {.method = "VersionService.WatchVersions",
         .extra = absl::ZeroDuration(),
         .waits = true},
        [&](const std::shared_ptr<grpc::Channel>& channel,
            grpc::ClientContext* context) {
          impl_->core().FillCaller(request.mutable_caller());
          auto stub = v1::VersionService::NewStub(channel);
          auto reader = stub->WatchVersions(context, request);
          v1::VersionSource message;
          while (!done && reader->Read(&message)) {
            absl::StatusOr<VersionSource> target = FromProto(message);
            stream = target.status();
            done = !stream.ok() || !on_target(*target);
          }
          if (done) {
            context->TryCancel();
            static_cast<void>(reader->Finish());
            return grpc::Status::OK;
          }
          return reader->Finish();
        });
    COX_RETURN_IF_ERROR(status);
    COX_RETURN_IF_ERROR(stream);
  }
  return absl::OkStatus();
}

absl::Status CoordinatorClient::ReportHeld(
    const std::vector<std::string>& content_hashes, const std::string& address,
    const std::string& damaged) {
  v1::ReportHeldRequest request;
  request.set_damaged(damaged);
  request.mutable_content_hashes()->Assign(content_hashes.begin(),
                                           content_hashes.end());
  request.set_address(address);
  return impl_
      ->Unary<v1::VersionService>({.method = "VersionService.ReportHeld",
                                   .extra = absl::ZeroDuration()},
                                  std::move(request),
                                  &v1::VersionService::Stub::ReportHeld)
      .status();
}

absl::StatusOr<std::string> CoordinatorClient::BeginCheckpoint(int32_t stage,
                                                               int64_t step) {
  v1::BeginCheckpointRequest request;
  request.set_stage(stage);
  request.set_step(step);
  COX_ASSIGN_OR_RETURN(
      v1::BeginCheckpointResponse response,
      impl_->Unary<v1::CheckpointService>(
          {.method = "CheckpointService.BeginCheckpoint",
           .extra = absl::ZeroDuration()},
          std::move(request), &v1::CheckpointService::Stub::BeginCheckpoint));
  return response.directory();
}

absl::StatusOr<std::vector<std::string>> CoordinatorClient::CommitCheckpoint(
    const v1::CheckpointRef& checkpoint, const std::string& weight_hash,
    const std::string& state_sha256) {
  v1::CommitCheckpointRequest request;
  *request.mutable_checkpoint() = checkpoint;
  request.set_weight_hash(weight_hash);
  request.set_state_sha256(state_sha256);
  COX_ASSIGN_OR_RETURN(
      v1::CommitCheckpointResponse response,
      impl_->Unary<v1::CheckpointService>(
          {.method = "CheckpointService.CommitCheckpoint",
           .extra = absl::ZeroDuration()},
          std::move(request), &v1::CheckpointService::Stub::CommitCheckpoint));
  return std::vector<std::string>(response.delete_directories().begin(),
                                  response.delete_directories().end());
}

absl::StatusOr<std::vector<v1::CheckpointRef>>
CoordinatorClient::LatestCheckpoint(int32_t stage) {
  v1::LatestCheckpointRequest request;
  request.set_stage(stage);
  COX_ASSIGN_OR_RETURN(
      v1::LatestCheckpointResponse response,
      impl_->Unary<v1::CheckpointService>(
          {.method = "CheckpointService.LatestCheckpoint",
           .extra = absl::ZeroDuration()},
          std::move(request), &v1::CheckpointService::Stub::LatestCheckpoint));
  return std::vector<v1::CheckpointRef>(response.checkpoints().begin(),
                                        response.checkpoints().end());
}

CallerIdentity CoordinatorClient::caller() const {
  return impl_->core().caller();
}
void CoordinatorClient::set_generation(Generation generation) {
  impl_->core().SetGeneration(generation);
}
void CoordinatorClient::set_numerics_class(std::string numerics_class) {
  impl_->set_numerics_class(std::move(numerics_class));
}
void CoordinatorClient::set_own_address(std::string own_address) {
  impl_->set_own_address(std::move(own_address));
}
void CoordinatorClient::StopWaiting() { impl_->core().StopWaiting(); }

}  // namespace cox
