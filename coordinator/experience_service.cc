#include "coordinator/experience_service.h"

#include <algorithm>
#include <utility>

#include "coordinator/wire_service.h"
#include "lib/rpc/error_reason.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"

namespace cox {
namespace {

using cox::v1::TakeBatchRequest;
using cox::v1::TakeBatchResponse;

constexpr size_t kMaxMetrics = 1024;

// Waits for the batch on the core thread, then sends it unit by unit: payloads
// are read on the I/O thread, at most one at a time.
class BatchStream : public grpc::ServerWriteReactor<TakeBatchResponse> {
 public:
  BatchStream(ServiceContext& service, grpc::CallbackServerContext* context)
      : service_(service), context_(context) {}

  void Start(const TakeBatchRequest& request) {
    const absl::Status admitted = Admit(service_, *context_, request.caller(),
                                        "ExperienceService.TakeBatch");
    if (!admitted.ok()) {
      Finish(ToGrpc(admitted));
      return;
    }
    CoreHost* host = service_.host;
    const absl::Duration wait = PollWait(*context_, request.wait_ms());
    const bool posted = host->Post([this, host, wait, request] {
      host->Park(
          wait,
          [this, host, request](bool expired) {
            return Attempt(*host, request, expired);
          },
          /*gone=*/nullptr, kBatchChange | kOtherChange);
    });
    if (!posted) {
      Finish(ToGrpc(BusyError()));
    }
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "caller is gone"));
    } else if (ended_) {
      Finish(grpc::Status::OK);
    } else if (offset_ < payload_.size()) {
      message_.Clear();
      SendChunk();
    } else {
      NextUnit();
    }
  }
  void OnDone() override { delete this; }

 private:
  bool Attempt(CoreHost& host, const TakeBatchRequest& request, bool expired) {
    absl::StatusOr<std::optional<BatchReply>> batch = host.core().TakeBatch(
        ToCore(request.caller()), request.stage(), request.step());
    absl::Status status = batch.status();
    if (status.ok() && !batch->has_value()) {
      // While the run drains nobody completes it: the caller may leave.
      if (!expired && !context_->IsCancelled() && !host.core().draining()) {
        return false;
      }
      status = WithReason(
          absl::UnavailableError(absl::StrCat(
              "the batch of step ", request.step(), " is not complete")),
          ErrorReason::kNotReady);
    }
    if (status.ok()) {
      batch_ = **std::move(batch);
    }
    host.AfterCommit([this, status](const absl::Status& committed) {
      if (!committed.ok() || !status.ok()) {
        Finish(ToGrpc(committed.ok() ? status : committed));
      } else {
        NextUnit();
      }
    });
    return true;
  }

  void NextUnit() {
    if (next_ == batch_.units.size()) {
      message_.Clear();
      message_.set_batch_sha256(batch_.batch_sha256);
      if (batch_.kl_coef.has_value()) {
        message_.set_kl_coef(*batch_.kl_coef);
      }
      ended_ = true;
      StartWrite(&message_);
      return;
    }
    const bool posted = service_.host->PostIo([this] {
      const BatchUnit& unit = batch_.units[next_++];
      absl::StatusOr<std::string> payload =
          service_.host->segments().Read(unit.payload, unit.sha256);
      if (!payload.ok()) {
        Finish(ToGrpc(Annotate(payload.status(), unit.id.ToString())));
        return;
      }
      payload_ = *std::move(payload);
      offset_ = 0;
      message_.Clear();
      ToProto(unit.id, message_.mutable_header()->mutable_unit());
      message_.mutable_header()->set_payload_sha256(unit.sha256);
      message_.mutable_header()->set_payload_bytes(payload_.size());
      SendChunk();
    });
    if (!posted) {
      Finish(ToGrpc(BusyError()));
    }
  }

  void SendChunk() {
    *message_.mutable_chunk() = MakeChunk(offset_, payload_);
    offset_ += message_.chunk().data().size();
    StartWrite(&message_);
  }

  ServiceContext& service_;
  grpc::CallbackServerContext* const context_;
  BatchReply batch_;
  size_t next_ = 0;  // unit
  std::string payload_;
  size_t offset_ = 0;
  bool ended_ = false;
  TakeBatchResponse message_;
};

}  // namespace

grpc::ServerWriteReactor<TakeBatchResponse>* ExperienceServiceImpl::TakeBatch(
    grpc::CallbackServerContext* context, const TakeBatchRequest* request) {
  auto* stream = new BatchStream(service_, context);
  stream->Start(*request);
  return stream;
}

grpc::ServerUnaryReactor* ExperienceServiceImpl::CommitStep(
    grpc::CallbackServerContext* context,
    const cox::v1::CommitStepRequest* request,
    cox::v1::CommitStepResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "ExperienceService.CommitStep",
      [request, response](CoordinatorCore& core) -> absl::Status {
        if (!IsSha256Hex(request->weight_hash())) {
          return absl::InvalidArgumentError(
              "weight_hash: 64 hex digits expected");
        }
        if (static_cast<size_t>(request->metrics_size()) > kMaxMetrics) {
          return absl::InvalidArgumentError("metrics: too many");
        }
        CommitStepEvent event;
        event.caller = ToCore(request->caller());
        event.stage = request->stage();
        event.step = request->step();
        event.batch_sha256 = request->batch_sha256();
        event.weight_hash = request->weight_hash();
        event.skipped = request->skipped();
        for (const cox::v1::Metric& metric : request->metrics()) {
          event.metrics.emplace_back(metric.name().substr(0, 128),
                                     metric.value());
        }
        if (request->has_checkpoint()) {
          if (request->checkpoint().step() != request->step() ||
              request->checkpoint().stage() != request->stage()) {
            return absl::InvalidArgumentError(
                "checkpoint: its stage and step are not the committed ones");
          }
          event.checkpoint =
              FromWire(request->checkpoint(), request->state_sha256());
        }
        COX_ASSIGN_OR_RETURN(const bool replayed, core.CommitStep(event));
        response->set_replayed(replayed);
        return absl::OkStatus();
      });
}

}  // namespace cox
