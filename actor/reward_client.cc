#include "actor/reward_client.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "cox/v1/reward.grpc.pb.h"
#include "lib/base/backoff.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/thread.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/status_convert.h"
#include "lib/rpc/trace_metadata.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

// Replicas of a run come and go with new ports; old channels must not pile up.
constexpr size_t kMaxChannels = 64;

bool WorthAnotherReplica(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsResourceExhausted(status) ||
         // Its weights are still on their way.
         absl::IsFailedPrecondition(status);
}

void FillSequences(
    const ScoringWork& work, size_t begin, size_t end,
    google::protobuf::RepeatedPtrField<v1::ScoredSequence>* sequences) {
  for (size_t i = begin; i < end; ++i) {
    ToProto((*work.trajectories)[i], work.prompt_texts[i],
            work.response_texts[i], sequences->Add());
  }
}

}  // namespace

std::vector<RewardClient::Part> RewardClient::Cut(size_t sequences) const {
  std::vector<Part> parts;
  for (size_t begin = 0; begin < sequences;
       begin += options_.sequences_per_request) {
    parts.push_back(
        {begin, std::min(begin + options_.sequences_per_request, sequences)});
  }
  return parts;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> RewardClient::ChannelTo(
    const std::string& address) {
  MutexLock lock(&mutex_);
  if (const auto it = channels_.find(address); it != channels_.end()) {
    return it->second;
  }
  COX_ASSIGN_OR_RETURN(auto channel, MakeChannel(address));
  if (channels_.size() >= kMaxChannels) channels_.clear();
  channels_[address] = channel;
  return channel;
}

absl::Status RewardClient::CallAny(std::string_view method,
                                   const std::vector<std::string>& addresses,
                                   absl::Duration absence, size_t first,
                                   const std::function<bool()>& give_up,
                                   const Attempt& attempt) {
  if (addresses.empty()) {
    return absl::UnavailableError("no reward replica is known");
  }
  const Clock& clock = Clock::Real();
  const MonoTime start = clock.Now();
  Backoff backoff(
      {.initial = absl::Milliseconds(50), .maximum = absl::Seconds(2)}, first);
  absl::Status last;
  std::optional<MonoTime> absent_since;  // since then nothing but UNAVAILABLE
  for (size_t n = 0;; ++n) {
    if (give_up()) return absl::CancelledError("the lease is over");
    const std::string& address = addresses[(first + n) % addresses.size()];
    COX_ASSIGN_OR_RETURN(auto channel, ChannelTo(address));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMicroseconds(LimitOf(method).deadline));
    AddTraceparent(&context);
    const grpc::Status status = attempt(channel, &context);
    if (status.ok()) return absl::OkStatus();
    last = Annotate(FromGrpc(status),
                    absl::StrCat(std::string(method), " at ", address));
    if (!WorthAnotherReplica(last)) return last;
    LogWarning("reward replica did not answer", {{"error", last.ToString()}});
    if (!absl::IsUnavailable(last)) {
      absent_since.reset();
    } else if (!absent_since.has_value()) {
      absent_since = clock.Now();
    }
    // A pause after each round, not before the next replica.
    if ((n + 1) % addresses.size() != 0) continue;
    const absl::Duration pause = backoff.Next();
    const MonoTime next = clock.Now() + pause;
    if (next - start > options_.patience ||
        (absent_since.has_value() && next - *absent_since > absence)) {
      return absl::UnavailableError(last.ToString());
    }
    absl::SleepFor(pause);
  }
}

absl::Status RewardClient::Rewards(const std::vector<std::string>& addresses,
                                   absl::Duration absence,
                                   const v1::ScoreRequest& prototype,
                                   const ScoringWork& work,
                                   const std::function<bool()>& give_up,
                                   std::vector<v1::SequenceScore>* scores) {
  for (const Part& part : Cut(work.trajectories->size())) {
    v1::ScoreRequest request = prototype;
    FillSequences(work, part.begin, part.end, request.mutable_sequences());
    v1::ScoreResponse response;
    const size_t first = (*work.trajectories)[part.begin].prompt_id;
    COX_RETURN_IF_ERROR(
        CallAny("RewardService.Score", addresses, absence, first, give_up,
                [&](const std::shared_ptr<grpc::Channel>& channel,
                    grpc::ClientContext* context) {
                  ToProto(options_.caller(), request.mutable_caller());
                  response.Clear();
                  return v1::RewardService::NewStub(channel)->Score(
                      context, request, &response);
                }));
    if (static_cast<size_t>(response.scores_size()) != part.end - part.begin) {
      return absl::DataLossError(
          absl::StrCat("Score: expected ", part.end - part.begin,
                       " scores, found ", response.scores_size()));
    }
    scores->insert(scores->end(), response.scores().begin(),
                   response.scores().end());
  }
  return absl::OkStatus();
}

absl::Status RewardClient::References(
    const v1::ScorePlan& plan, const ScoringWork& work,
    const std::function<bool()>& give_up,
    std::vector<v1::SequenceLogprobs>* logprobs) {
  const std::vector<std::string> addresses(plan.reward_addresses().begin(),
                                           plan.reward_addresses().end());
  for (const Part& part : Cut(work.trajectories->size())) {
    v1::LogprobsRequest request;
    request.set_reference_hash(plan.reference_hash());
    request.set_temperature(work.temperature);
    FillSequences(work, part.begin, part.end, request.mutable_sequences());
    v1::LogprobsResponse response;
    const size_t first = (*work.trajectories)[part.begin].prompt_id + 1;
    COX_RETURN_IF_ERROR(
        CallAny("ReferenceService.Logprobs", addresses, options_.absence, first,
                give_up,
                [&](const std::shared_ptr<grpc::Channel>& channel,
                    grpc::ClientContext* context) {
                  ToProto(options_.caller(), request.mutable_caller());
                  response.Clear();
                  return v1::ReferenceService::NewStub(channel)->Logprobs(
                      context, request, &response);
                }));
    if (static_cast<size_t>(response.sequences_size()) !=
        part.end - part.begin) {
      return absl::DataLossError(
          absl::StrCat("Logprobs: expected ", part.end - part.begin,
                       " sequences, found ", response.sequences_size()));
    }
    logprobs->insert(logprobs->end(), response.sequences().begin(),
                     response.sequences().end());
  }
  return absl::OkStatus();
}

absl::Status RewardClient::ScoreUnit(const v1::ScorePlan& plan,
                                     const ScoringWork& work,
                                     const std::function<bool()>& give_up) {
  std::vector<v1::SequenceLogprobs> logprobs;
  absl::Status reference;
  Thread other;
  if (!plan.reference_hash().empty()) {
    other = Thread("reference", [&, trace = CurrentTrace()] {
      const TraceAdoption adoption(trace);
      reference = References(plan, work, give_up, &logprobs);
    });
  }
  const std::vector<std::string> ours(plan.reward_addresses().begin(),
                                      plan.reward_addresses().end());
  const bool foreign = !plan.address().empty();
  v1::ScoreRequest request;
  request.set_reward_hash(plan.reward_hash());
  request.set_gold(plan.gold());
  std::vector<v1::SequenceScore> scores;
  std::vector<v1::SequenceScore> gold;
  absl::Status reward =
      Rewards(foreign ? std::vector<std::string>{plan.address()} : ours,
              foreign ? options_.patience : options_.absence, request, work,
              give_up, &scores);
  if (reward.ok() && foreign && plan.gold() && !ours.empty()) {
    // A server of the user's own knows nothing of our gold part.
    request.clear_reward_hash();
    reward = Rewards(ours, options_.absence, request, work, give_up, &gold);
  }
  other.Join();
  COX_RETURN_IF_ERROR(reward);
  COX_RETURN_IF_ERROR(reference);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!gold.empty()) {
      for (const v1::NamedPart& part : gold[i].parts()) {
        if (part.name() == "gold") *scores[i].add_parts() = part;
      }
    }
    COX_RETURN_IF_ERROR(ApplyScore(scores[i], &(*work.trajectories)[i]));
    if (!logprobs.empty()) {
      COX_RETURN_IF_ERROR(ApplyLogprobs(logprobs[i], &(*work.trajectories)[i]));
    }
  }
  return absl::OkStatus();
}

}  // namespace cox
