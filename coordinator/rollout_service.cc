#include "coordinator/rollout_service.h"

#include <algorithm>
#include <utility>

#include "coordinator/wire_service.h"
#include "lib/base/hash.h"
#include "lib/data/trajectory.h"
#include "lib/rpc/error_reason.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"

namespace cox {
namespace {

using cox::v1::SubmitUnitRequest;
using cox::v1::SubmitUnitResponse;

// Over all streams; beyond it actors are told to slow down.
constexpr int64_t kMaxReceivingBytes = int64_t{256} << 20;
constexpr size_t kMaxReason = 512;  // bytes of an actor's explanation

void FillGrant(const LeaseGrant& grant, const PromptBook& prompts,
               cox::v1::LeasedUnit* out) {
  ToProto(grant.unit, out->mutable_unit());
  out->set_attempt(grant.attempt);
  out->set_lease_ms(absl::ToInt64Milliseconds(grant.lease));
  FillSource(grant.policy, out->mutable_policy());
  for (const BookPrompt& prompt : prompts.ForUnit(grant.unit)) {
    cox::v1::PromptRow* row = out->add_prompts();
    row->set_prompt_id(prompt.prompt_id);
    for (const int32_t id : prompt.ids) {
      row->add_ids(id);
    }
    for (const int32_t id : prompt.instruction_ids) {
      row->add_instruction_ids(id);
    }
    row->set_text(prompt.text);
  }
  out->set_samples_per_prompt(prompts.SamplesPerPrompt(grant.unit));
  if (grant.score.reward_addresses.empty() && grant.score.address.empty()) {
    return;  // people label these samples: absence means "do not score"
  }
  cox::v1::ScorePlan* score = out->mutable_score();
  for (const std::string& address : grant.score.reward_addresses) {
    score->add_reward_addresses(address);
  }
  score->set_reward_hash(grant.score.reward_hash);
  score->set_reference_hash(grant.score.reference_hash);
  score->set_gold(grant.score.gold);
  score->set_address(grant.score.address);
}

// Receives one unit: header, chunks; checks everything that needs no state
// here, on gRPC's thread; the core does the rest.
class SubmitStream : public grpc::ServerReadReactor<SubmitUnitRequest> {
 public:
  SubmitStream(ServiceContext& service, grpc::CallbackServerContext* context,
               SubmitUnitResponse* response)
      : service_(service), context_(context), response_(response) {
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    const absl::Status status = ok ? OnMessage() : OnEnd();
    if (!status.ok()) {
      Finish(ToGrpc(status));
    } else if (ok) {
      StartRead(&message_);
    }
  }
  void OnDone() override {
    service_.receiving_bytes -= reserved_;
    delete this;
  }

 private:
  absl::Status OnHeader() {
    header_ = message_.header();
    COX_RETURN_IF_ERROR(Admit(service_, *context_, header_.caller(),
                              "RolloutService.SubmitUnit"));
    const int64_t limit = service_.run->config.limits().max_payload_bytes();
    if (header_.payload_bytes() == 0 ||
        header_.payload_bytes() > static_cast<uint64_t>(limit)) {
      return absl::InvalidArgumentError(
          absl::StrCat("header.payload_bytes: 1..", limit, " expected, found ",
                       header_.payload_bytes()));
    }
    if (!IsSha256Hex(header_.payload_sha256())) {
      return absl::InvalidArgumentError(
          "header.payload_sha256: 64 hex digits expected");
    }
    COX_ASSIGN_OR_RETURN(event_.unit, FromProto(header_.unit()));
    const auto bytes = static_cast<int64_t>(header_.payload_bytes());
    if (service_.receiving_bytes.fetch_add(bytes) + bytes >
        kMaxReceivingBytes) {
      service_.receiving_bytes -= bytes;
      return absl::ResourceExhaustedError("too many units are being received");
    }
    reserved_ = bytes;
    payload_.reserve(header_.payload_bytes());
    started_ = true;
    span_ = ServerSpan(*context_, "SubmitUnit");
    return absl::OkStatus();
  }

  absl::Status OnMessage() {
    if (message_.has_header()) {
      if (started_) {
        return absl::InvalidArgumentError("header: only in the first message");
      }
      COX_RETURN_IF_ERROR(OnHeader());
    } else if (!started_) {
      return absl::InvalidArgumentError(
          "header: expected in the first message");
    }
    if (!message_.has_chunk()) {
      return absl::OkStatus();
    }
    const absl::Status added =
        AppendChunk(message_.chunk(), header_.payload_bytes(), &payload_);
    return absl::IsDataLoss(added)
               ? WithReason(added, ErrorReason::kDamagedOnTheWay)
               : added;
  }

  absl::Status OnEnd() {
    if (!started_) {
      return absl::InvalidArgumentError("no header");
    }
    if (payload_.size() != header_.payload_bytes()) {
      return absl::InvalidArgumentError(
          absl::StrCat("payload: ", header_.payload_bytes(),
                       " bytes expected, found ", payload_.size()));
    }
    if (Sha256Hex(std::string_view(payload_)) != header_.payload_sha256()) {
      return absl::DataLossError("payload: its SHA-256 is not the header's");
    }
    absl::StatusOr<std::vector<Trajectory>> trajectories = ParseUnit(payload_);
    if (!trajectories.ok()) {
      // The bytes arrived as they were sent: the sender made them wrong.
      return absl::InvalidArgumentError(
          std::string(trajectories.status().message()));
    }
    COX_ASSIGN_OR_RETURN(
        event_.version_step,
        service_.run->prompts->CheckUnit(event_.unit, header_.policy_hash(),
                                         *trajectories));
    event_.caller = ToCore(header_.caller());
    event_.policy_hash = header_.policy_hash();
    event_.payload_sha256 = header_.payload_sha256();
    const bool posted = service_.host->PostSubmit(
        event_, std::move(payload_),
        [this](const absl::StatusOr<SubmitResult>& result) {
          if (result.ok()) {
            response_->set_outcome(*result == SubmitResult::kAccepted
                                       ? SubmitUnitResponse::ACCEPTED
                                   : *result == SubmitResult::kDuplicate
                                       ? SubmitUnitResponse::DUPLICATE
                                       : SubmitUnitResponse::ALREADY_CONSUMED);
          }
          if (span_ != nullptr) span_->End();
          Finish(ToGrpc(result.status()));
        });
    return posted ? absl::OkStatus() : BusyError();
  }

  ServiceContext& service_;
  grpc::CallbackServerContext* const context_;
  SubmitUnitResponse* const response_;
  SubmitUnitRequest message_;
  cox::v1::SubmitHeader header_;
  SubmitEvent event_;
  std::string payload_;
  bool started_ = false;
  int64_t reserved_ = 0;
  std::shared_ptr<OpenSpan> span_;
};

}  // namespace

grpc::ServerUnaryReactor* RolloutServiceImpl::LeaseUnits(
    grpc::CallbackServerContext* context,
    const cox::v1::LeaseUnitsRequest* request,
    cox::v1::LeaseUnitsResponse* response) {
  return RunPoll(
      service_, context, request->caller(), "RolloutService.LeaseUnits",
      request->wait_ms(), kLeaseChange | kOtherChange,
      [this, request, response](CoordinatorCore& core) -> absl::StatusOr<bool> {
        if (request->max_units() < 1 ||
            request->max_units() > kMaxUnitsPerLease) {
          return absl::InvalidArgumentError(
              absl::StrCat("max_units: 1..", kMaxUnitsPerLease,
                           " expected, found ", request->max_units()));
        }
        response->set_epoch(core.epoch().value);
        COX_ASSIGN_OR_RETURN(
            const std::vector<LeaseGrant> grants,
            core.Lease(ToCore(request->caller()), request->max_units()));
        for (const LeaseGrant& grant : grants) {
          FillGrant(grant, *service_.run->prompts, response->add_units());
        }
        return !grants.empty();
      });
}

grpc::ServerUnaryReactor* RolloutServiceImpl::RenewLease(
    grpc::CallbackServerContext* context,
    const cox::v1::RenewLeaseRequest* request,
    cox::v1::RenewLeaseResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "RolloutService.RenewLease",
      [request, response](CoordinatorCore& core) -> absl::Status {
        COX_ASSIGN_OR_RETURN(const std::vector<UnitId> units,
                             FromWire(request->units()));
        COX_ASSIGN_OR_RETURN(const std::vector<bool> held,
                             core.Renew(ToCore(request->caller()), units));
        for (const bool one : held) {
          response->add_held(one);
        }
        return absl::OkStatus();
      });
}

grpc::ServerReadReactor<SubmitUnitRequest>* RolloutServiceImpl::SubmitUnit(
    grpc::CallbackServerContext* context, SubmitUnitResponse* response) {
  return new SubmitStream(service_, context, response);
}

grpc::ServerUnaryReactor* RolloutServiceImpl::ReturnUnits(
    grpc::CallbackServerContext* context,
    const cox::v1::ReturnUnitsRequest* request, cox::v1::ReturnUnitsResponse*) {
  return RunUnary(
      service_, context, request->caller(), "RolloutService.ReturnUnits",
      [request](CoordinatorCore& core) -> absl::Status {
        COX_ASSIGN_OR_RETURN(const std::vector<UnitId> units,
                             FromWire(request->units()));
        if (!request->failed().empty()) {
          return core.ReturnFailed(ToCore(request->caller()), units,
                                   request->failed().substr(0, kMaxReason));
        }
        return core.Return(ToCore(request->caller()), units);
      });
}

}  // namespace cox
