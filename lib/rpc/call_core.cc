#include "lib/rpc/call_core.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "lib/base/backoff.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/status_convert.h"
#include "lib/rpc/trace_metadata.h"

namespace cox {
namespace {

// What a process that is leaving may still spend on one call.
constexpr absl::Duration kLeavingPatience = absl::Seconds(3);
// A session that is refused right after it registered is refused for good.
constexpr int kMaxReregistrations = 2;

uint64_t JitterSeed(const std::string& session) {
  return std::hash<std::string>{}(session);
}

}  // namespace

CallCore::CallCore(CallCoreOptions options)
    : address_(std::move(options.address)),
      reregister_(std::move(options.reregister)),
      caller_(std::move(options.caller)),
      patience_(options.patience),
      max_backoff_(options.max_backoff) {}

void CallCore::FillCaller(cox::v1::Caller* proto) const {
  MutexLock lock(&mutex_);
  ToProto(caller_, proto);
}

CallerIdentity CallCore::caller() const {
  MutexLock lock(&mutex_);
  return caller_;
}

void CallCore::LearnRunId(const std::string& run_id) {
  MutexLock lock(&mutex_);
  if (caller_.run_id.empty()) caller_.run_id = run_id;
}

void CallCore::LearnEpoch(int64_t epoch) {
  MutexLock lock(&mutex_);
  caller_.epoch.value = std::max(caller_.epoch.value, epoch);
}

void CallCore::SetEpoch(int64_t epoch) {
  MutexLock lock(&mutex_);
  caller_.epoch.value = epoch;
}

void CallCore::SetGeneration(Generation generation) {
  MutexLock lock(&mutex_);
  caller_.generation = generation;
}

void CallCore::SetLimits(absl::Duration patience, absl::Duration max_backoff) {
  MutexLock lock(&mutex_);
  patience_ = patience;
  max_backoff_ = max_backoff;
}

void CallCore::StopWaiting() {
  MutexLock lock(&mutex_);
  stopping_ = true;
  // TryCancel only posts the cancellation; it calls nothing of ours.
  for (grpc::ClientContext* context : waiting_) context->TryCancel();
  stop_changed_.NotifyAll();
}

bool CallCore::stopping() const {
  MutexLock lock(&mutex_);
  return stopping_;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> CallCore::GetChannel() {
  {
    MutexLock lock(&mutex_);
    if (channel_ != nullptr) return channel_;
  }
  COX_ASSIGN_OR_RETURN(Endpoint endpoint,
                       ResolveEndpoint(Fs::Real(), address_));
  COX_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel,
                       MakeChannel(endpoint.address));
  if (!endpoint.run_id.empty()) LearnRunId(endpoint.run_id);
  MutexLock lock(&mutex_);
  if (channel_ == nullptr) channel_ = std::move(channel);
  return channel_;
}

void CallCore::DropChannel(const std::shared_ptr<grpc::Channel>& channel) {
  std::shared_ptr<grpc::Channel> dropped;
  MutexLock lock(&mutex_);
  if (channel_ == channel) dropped = std::move(channel_);
}

absl::Status CallCore::CallOnce(const CallShape& shape, const Attempt& attempt,
                                bool* server_alive) {
  *server_alive = false;
  COX_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, GetChannel());
  grpc::ClientContext context;
  const absl::Duration deadline = LimitOf(shape.method).deadline + shape.extra;
  context.set_deadline(std::chrono::system_clock::now() +
                       absl::ToChronoMicroseconds(deadline));
  AddTraceparent(&context);
  {
    MutexLock lock(&mutex_);
    if (stopping_ && shape.waits) {
      return absl::CancelledError("this process is leaving");
    }
    if (shape.waits) waiting_.insert(&context);
  }
  const grpc::Status status = attempt(channel, &context);
  {
    MutexLock lock(&mutex_);
    waiting_.erase(&context);
  }
  if (status.ok()) return absl::OkStatus();
  // A connection that still stands carried the server's own answer.
  *server_alive =
      channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY;
  // The next attempt resolves the address again: a restarted coordinator may
  // listen elsewhere, and a stopped one holds its connection open.
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
      (status.error_code() == grpc::StatusCode::UNAVAILABLE &&
       !*server_alive)) {
    DropChannel(channel);
  }
  return Annotate(FromGrpc(status), shape.method);
}

bool CallCore::Reregistered(const CallShape& shape,
                            const absl::Status& status) {
  if (!reregister_ || shape.registering) return false;
  const ErrorReason reason = ReasonOf(status);
  const bool fenced =
      absl::IsFailedPrecondition(status) &&
      (reason == ErrorReason::kStaleEpoch || reason == ErrorReason::kNone);
  const bool forgotten =
      absl::IsNotFound(status) &&
      (reason == ErrorReason::kUnknownSession ||
       (reason == ErrorReason::kNone && !shape.not_found_is_answer));
  if (!fenced && !forgotten) return false;
  const int64_t before = caller().epoch.value;
  const absl::Status again = reregister_();
  if (!again.ok()) {
    LogWarning("cannot register again", {{"error", again.ToString()}});
    return false;
  }
  const int64_t after = caller().epoch.value;
  LogInfo("registered again",
          {{"method", std::string(shape.method)}, Field("epoch", after)});
  // A precondition without a reason may be about anything; only a new epoch
  // makes it worth asking again.
  return forgotten || reason == ErrorReason::kStaleEpoch || after != before;
}

bool CallCore::Pause(absl::Duration duration) {
  MutexLock lock(&mutex_);
  return !stop_changed_.WaitFor(
      mutex_, duration,
      [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return stopping_; });
}

absl::Status CallCore::Call(const CallShape& shape, const Attempt& attempt) {
  const Clock& clock = Clock::Real();
  BackoffOptions backoff_options;
  uint64_t seed = 0;
  {
    MutexLock lock(&mutex_);
    backoff_options.maximum = max_backoff_;
    backoff_options.initial = std::min(absl::Milliseconds(100), max_backoff_);
    seed = JitterSeed(caller_.session);
  }
  Backoff backoff(backoff_options, seed);
  const bool retryable = LimitOf(shape.method).retryable && !shape.once;
  // Patience counts from the last moment the coordinator may have answered.
  MonoTime silent_since = clock.Now();
  int registrations = 0;
  while (true) {
    bool alive = false;
    const absl::Status status = CallOnce(shape, attempt, &alive);
    if (status.ok()) return status;
    if (shape.waits && stopping()) {
      return absl::CancelledError(
          absl::StrCat(shape.method.data(), ": this process is leaving"));
    }
    if (registrations < kMaxReregistrations && Reregistered(shape, status)) {
      ++registrations;
      silent_since = clock.Now();
      continue;
    }
    if (absl::IsUnavailable(status) && shape.unavailable_is_answer &&
        (alive || ReasonOf(status) == ErrorReason::kNotReady)) {
      return WithReason(status, ErrorReason::kNotReady);
    }
    const bool transient =
        absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
    if (!transient || !retryable) return status;
    absl::Duration patience;
    {
      MutexLock lock(&mutex_);
      patience = stopping_ ? std::min(patience_, kLeavingPatience) : patience_;
    }
    const absl::Duration pause = backoff.Next();
    if (clock.Now() + pause - silent_since > patience) {
      return absl::UnavailableError(absl::StrCat(
          "coordinator at ", address_, ": no answer for ",
          absl::FormatDuration(patience), "; last: ", status.ToString()));
    }
    if (!Pause(pause) && shape.waits) {
      return absl::CancelledError("this process is leaving");
    }
    // A leaving process has no interruptible pause any more: do not spin.
    if (stopping()) absl::SleepFor(std::min(pause, absl::Milliseconds(100)));
  }
}

}  // namespace cox
