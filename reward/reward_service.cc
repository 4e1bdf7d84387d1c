#include "reward/reward_service.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "lib/base/failpoint.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/server.h"
#include "lib/rpc/status_convert.h"
#include "lib/rpc/trace_metadata.h"
#include "reward/sequence_batch.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

// So that a refusal still reaches the caller before its deadline.
absl::Duration WaitBudget(const grpc::CallbackServerContext& context) {
  const absl::Duration left = TimeLeft(context);
  return std::max(absl::ZeroDuration(),
                  left - std::min(absl::Seconds(1), left / 10));
}

absl::StatusOr<std::vector<ScoreInput>> ReadSequences(
    const google::protobuf::RepeatedPtrField<v1::ScoredSequence>& sequences) {
  std::vector<ScoreInput> inputs;
  for (const v1::ScoredSequence& sequence : sequences) {
    const std::string where = absl::StrCat("sequences[", inputs.size(), "]");
    if (sequence.prompt_text().size() > kMaxTextBytes ||
        sequence.response_text().size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": a text is larger than 64 KiB"));
    }
    ScoreInput& input = inputs.emplace_back();
    input.prompt_ids.assign(sequence.prompt_ids().begin(),
                            sequence.prompt_ids().end());
    input.response_ids.assign(sequence.response_ids().begin(),
                              sequence.response_ids().end());
    input.instruction_ids.assign(sequence.instruction_ids().begin(),
                                 sequence.instruction_ids().end());
    input.prompt_text = sequence.prompt_text();
    input.response_text = sequence.response_text();
  }
  return inputs;
}

absl::Status CheckBackend(const grpc::CallbackServerContext& context,
                          const v1::Caller& caller,
                          const RewardBackend* backend) {
  if (backend == nullptr) {
    return absl::UnavailableError("this replica is still starting");
  }
  return CheckCall(context, caller, backend->run_id);
}

void WriteScores(const std::vector<ScoreResult>& results,
                 RewardBackendHolder* holder, v1::ScoreResponse* response) {
  for (const ScoreResult& result : results) {
    v1::SequenceScore* score = response->add_scores();
    score->set_scored(result.scored);
    score->set_total(result.total);
    score->set_reason(result.reason);
    for (const auto& [name, value] : result.parts) {
      v1::NamedPart* part = score->add_parts();
      part->set_name(name);
      part->set_value(value);
    }
    (result.scored ? holder->sequences_scored : holder->sequences_excluded)++;
  }
}

}  // namespace

void RewardBackendHolder::Attach(RewardBackend backend) {
  auto shared = std::make_shared<const RewardBackend>(std::move(backend));
  MutexLock lock(&mutex_);
  backend_ = std::move(shared);
}

std::shared_ptr<const RewardBackend> RewardBackendHolder::Get() const {
  MutexLock lock(&mutex_);
  return backend_;
}

std::string RewardBackendHolder::run_id() const {
  const auto backend = Get();
  return backend == nullptr ? std::string() : backend->run_id;
}

grpc::ServerUnaryReactor* RewardServiceImpl::Score(
    grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
    v1::ScoreResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto refuse = [this, reactor](const absl::Status& status) {
    holder_->requests_refused++;
    reactor->Finish(ToGrpc(status));
  };
  const auto backend = holder_->Get();
  absl::Status status =
      CheckBackend(*context, request->caller(), backend.get());
  absl::StatusOr<std::vector<ScoreInput>> inputs =
      status.ok() ? ReadSequences(request->sequences()) : status;
  if (!inputs.ok()) {
    refuse(inputs.status());
    return reactor;
  }
  OpenSpan span("reward", TraceparentOf(*context), "");
  auto job = [this, backend, refuse, reactor, request, response, span,
              sequences = std::move(*inputs)](const absl::Status& verdict,
                                              ScoreEngine* engine) mutable {
    if (!verdict.ok()) return refuse(verdict);
    HitFailpoint("reward.received");
    auto results =
        ScoreSequences(backend->rules, engine, sequences, request->gold());
    if (!results.ok()) return refuse(results.status());
    WriteScores(*results, holder_, response);
    HitFailpoint("reward.scored");
    response->set_reward_hash(request->reward_hash());
    span.End();
    reactor->Finish(grpc::Status::OK);
  };
  status = backend->driver->Submit(ModelSlot::kReward, request->reward_hash(),
                                   WaitBudget(*context), std::move(job));
  if (!status.ok()) refuse(status);
  return reactor;
}

grpc::ServerUnaryReactor* ReferenceServiceImpl::Logprobs(
    grpc::CallbackServerContext* context, const v1::LogprobsRequest* request,
    v1::LogprobsResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto refuse = [this, reactor](const absl::Status& status) {
    holder_->requests_refused++;
    reactor->Finish(ToGrpc(status));
  };
  const auto backend = holder_->Get();
  absl::Status status =
      CheckBackend(*context, request->caller(), backend.get());
  if (status.ok() && !(request->temperature() > 0)) {
    status = absl::InvalidArgumentError("temperature: expected > 0");
  }
  if (status.ok() && request->reference_hash().empty()) {
    status = absl::InvalidArgumentError("reference_hash: expected one");
  }
  absl::StatusOr<std::vector<ScoreInput>> inputs =
      status.ok() ? ReadSequences(request->sequences()) : status;
  if (!inputs.ok()) {
    refuse(inputs.status());
    return reactor;
  }
  OpenSpan span("reference", TraceparentOf(*context), "");
  auto job = [this, refuse, reactor, request, response, span,
              sequences = std::move(*inputs)](const absl::Status& verdict,
                                              ScoreEngine* engine) mutable {
    if (!verdict.ok()) return refuse(verdict);
    auto rows = ReferenceLogprobs(engine, sequences, request->temperature());
    if (!rows.ok()) return refuse(rows.status());
    for (const std::vector<float>& row : *rows) {
      response->add_sequences()->mutable_logprobs()->Assign(row.begin(),
                                                            row.end());
    }
    response->set_reference_hash(request->reference_hash());
    holder_->sequences_referenced += rows->size();
    span.End();
    reactor->Finish(grpc::Status::OK);
  };
  status =
      backend->driver->Submit(ModelSlot::kReference, request->reference_hash(),
                              WaitBudget(*context), std::move(job));
  if (!status.ok()) refuse(status);
  return reactor;
}

}  // namespace cox
