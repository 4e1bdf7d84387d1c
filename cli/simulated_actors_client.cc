#include "cli/simulated_actors_client.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>

#include "cox/v1/rollout.grpc.pb.h"
#include "cox/v1/run.grpc.pb.h"
#include "grpcpp/alarm.h"
#include "lib/base/hash.h"
#include "lib/base/rng.h"
#include "lib/data/trajectory.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"
#include "lib/rpc/status_convert.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr absl::Duration kPoll = absl::Seconds(20);
constexpr int kStarting = 20;  // actors that register at a time
constexpr absl::Duration kRetryPause = absl::Milliseconds(200);

std::chrono::system_clock::time_point After(absl::Duration duration) {
  return std::chrono::system_clock::now() +
         absl::ToChronoMicroseconds(duration);
}

void SetDeadline(std::string_view method, absl::Duration extra,
                 grpc::ClientContext& context) {
  context.set_deadline(After(LimitOf(method).deadline + extra));
}

// A payload as an actor with a model would send it. A function of the unit
// alone, so that a second computation of it gives the same bytes.
absl::StatusOr<std::string> MakePayload(const SimulatedActorOptions& options,
                                        const v1::LeasedUnit& leased) {
  COX_ASSIGN_OR_RETURN(const UnitId unit, FromProto(leased.unit()));
  COX_ASSIGN_OR_RETURN(const PolicyVersion version,
                       FromProto(leased.policy().ref().version()));
  const auto tokens = static_cast<size_t>(options.response_tokens);
  std::vector<Trajectory> trajectories;
  for (int p = 0; p < leased.prompts_size(); ++p) {
    const v1::PromptRow& prompt = leased.prompts(p);
    for (int32_t s = 0; s < leased.samples_per_prompt(); ++s) {
      CounterRng rng(
          options.seed + prompt.prompt_id() * 64 + static_cast<uint64_t>(s),
          "simulated");
      Trajectory t;
      t.id = {unit, p, s};
      t.prompt_id = prompt.prompt_id();
      t.prompt_ids.assign(prompt.ids().begin(), prompt.ids().end());
      t.instruction_ids.assign(prompt.instruction_ids().begin(),
                               prompt.instruction_ids().end());
      for (size_t i = 0; i < tokens; ++i) {
        const uint64_t draw =
            rng.NextBelow(static_cast<uint64_t>(options.vocab_size));
        t.response_ids.push_back(static_cast<int32_t>(draw));
        const float logprob = -0.001f * static_cast<float>(draw + 1);
        t.behaviour_logprobs.push_back(logprob);
        t.reference_logprobs.push_back(logprob);
      }
      t.finish = FinishReason::kLength;
      t.reward_total = static_cast<double>(rng.NextBelow(1000)) / 1000;
      t.reward_parts.emplace_back("score", *t.reward_total);
      t.policy_hash = leased.policy().ref().content_hash();
      t.version = version;
      trajectories.push_back(std::move(t));
    }
  }
  return SerializeUnit(trajectories);
}

}  // namespace

struct SimulatedActors::Shared {
  explicit Shared(SimulatedActorOptions o) : options(std::move(o)) {}
  const SimulatedActorOptions options;
  std::atomic<bool> stopping{false};
  std::atomic<bool> window{false};
  mutable Mutex mutex;
  CondVar changed;
  int registered ABSL_GUARDED_BY(mutex) = 0;
  // Calls and alarms whose callback is still to come.
  int64_t open ABSL_GUARDED_BY(mutex) = 0;
  int64_t failed ABSL_GUARDED_BY(mutex) = 0;
  std::string first_error ABSL_GUARDED_BY(mutex);
  std::map<UnitId, std::string> acknowledged ABSL_GUARDED_BY(mutex);
  std::vector<double> ack_us ABSL_GUARDED_BY(mutex);
  std::vector<double> lease_us ABSL_GUARDED_BY(mutex);
  int64_t units ABSL_GUARDED_BY(mutex) = 0;
  int64_t samples ABSL_GUARDED_BY(mutex) = 0;

  void Open() {
    MutexLock lock(&mutex);
    ++open;
  }
  void Close() {
    MutexLock lock(&mutex);
    if (--open == 0) changed.NotifyAll();
  }
  void Failed(std::string_view what, const grpc::Status& status) {
    if (stopping) return;  // we cancel them ourselves
    MutexLock lock(&mutex);
    ++failed;
    if (first_error.empty()) {
      first_error = Annotate(FromGrpc(status), what).ToString();
    }
  }
};

// Everything runs in gRPC's callbacks. The unit's chain (lease, wait, submit)
// is one at a time, and so are the chains of heartbeats and assignment polls:
// they share nothing but `caller_`, which is fixed once registered.
class SimulatedActors::Actor {
 public:
  Actor(Shared* shared, int number,
        const std::shared_ptr<grpc::Channel>& channel)
      : shared_(shared),
        number_(number),
        run_(v1::RunService::NewStub(channel)),
        rollout_(v1::RolloutService::NewStub(channel)) {
    caller_.set_run_id(shared->options.run_id);
    caller_.set_session(NewSessionId());
    caller_.set_role("actor");
    caller_.set_name(absl::StrCat("simulated-", number));
  }

  void Register() {
    auto call =
        std::make_shared<Call<v1::RegisterRequest, v1::RegisterResponse>>();
    *call->request.mutable_caller() = caller_;
    call->request.mutable_caller()->set_epoch(0);
    call->request.set_address("127.0.0.1:1");  // it serves nothing
    SetDeadline("RunService.Register", absl::Seconds(20), call->context);
    shared_->Open();
    run_->async()->Register(&call->context, &call->request, &call->response,
                            [this, call](grpc::Status status) {
                              if (!status.ok()) {
                                shared_->Failed("Register", status);
                                Later(retry_, kRetryPause,
                                      [this] { Register(); });
                              } else {
                                caller_.set_epoch(call->response.epoch());
                                MutexLock lock(&shared_->mutex);
                                ++shared_->registered;
                                shared_->changed.NotifyAll();
                              }
                              shared_->Close();
                            });
  }

  void Start() {
    const int count = shared_->options.count;
    Later(work_, shared_->options.service_time * number_ / count,
          [this] { Lease(); });
    Later(beat_, shared_->options.heartbeat * number_ / count,
          [this] { Beat(); });
    Poll();
  }

  // Ends waiting; callbacks still come.
  void Cancel() {
    MutexLock lock(&mutex_);
    for (const Timer* timer : {&work_, &beat_, &retry_}) {
      if (timer->alarm != nullptr) timer->alarm->Cancel();
    }
    if (poll_ != nullptr) poll_->TryCancel();
    if (lease_ != nullptr) lease_->TryCancel();
  }

  // First and last acknowledgement in the window, and the units between.
  double SamplesPerSecond() const {
    MutexLock lock(&mutex_);
    const double seconds = absl::ToDoubleSeconds(last_ack_ - first_ack_);
    return acks_ > 1 && seconds > 0
               ? static_cast<double>(samples_after_first_) / seconds
               : 0;
  }
  void ResetWindow() {
    MutexLock lock(&mutex_);
    acks_ = 0;
    samples_after_first_ = 0;
  }

 private:
  template <typename Request, typename Response>
  struct Call {
    grpc::ClientContext context;
    Request request;
    Response response;
  };
  // An alarm cannot be set again from its own callback, so each wait has a
  // new one, which its callback keeps alive.
  struct Timer {
    std::shared_ptr<grpc::Alarm> alarm;
  };
  class Submit;

  void Later(Timer& timer, absl::Duration wait, std::function<void()> then) {
    if (shared_->stopping) return;
    shared_->Open();
    auto alarm = std::make_shared<grpc::Alarm>();
    {
      MutexLock lock(&mutex_);
      timer.alarm = alarm;
    }
    alarm->Set(After(wait), [this, alarm, then = std::move(then)](bool ok) {
      if (ok && !shared_->stopping) then();
      shared_->Close();
    });
  }

  void Beat() {
    auto call =
        std::make_shared<Call<v1::HeartbeatRequest, v1::HeartbeatResponse>>();
    *call->request.mutable_caller() = caller_;
    call->request.set_state("generating");
    {
      MutexLock lock(&mutex_);
      if (!held_.empty()) call->request.add_held(held_);
    }
    SetDeadline("RunService.Heartbeat", absl::ZeroDuration(), call->context);
    shared_->Open();
    run_->async()->Heartbeat(&call->context, &call->request, &call->response,
                             [this, call](grpc::Status status) {
                               if (!status.ok())
                                 shared_->Failed("Heartbeat", status);
                               Later(beat_, shared_->options.heartbeat,
                                     [this] { Beat(); });
                               shared_->Close();
                             });
  }

  void Poll() {
    if (shared_->stopping) return;
    auto call =
        std::make_shared<Call<v1::GetAssignmentRequest, v1::Assignment>>();
    *call->request.mutable_caller() = caller_;
    call->request.set_known_serial(serial_);
    call->request.set_wait_ms(absl::ToInt64Milliseconds(kPoll));
    SetDeadline("RunService.GetAssignment", kPoll, call->context);
    {
      MutexLock lock(&mutex_);
      poll_ = &call->context;
    }
    shared_->Open();
    run_->async()->GetAssignment(
        &call->context, &call->request, &call->response,
        [this, call](grpc::Status status) {
          {
            MutexLock lock(&mutex_);
            poll_ = nullptr;
          }
          if (!status.ok()) {
            shared_->Failed("GetAssignment", status);
            Later(retry_, kRetryPause, [this] { Poll(); });
          } else {
            serial_ = call->response.serial();
            Poll();
          }
          shared_->Close();
        });
  }

  void Lease() {
    if (shared_->stopping) return;
    auto call =
        std::make_shared<Call<v1::LeaseUnitsRequest, v1::LeaseUnitsResponse>>();
    *call->request.mutable_caller() = caller_;
    call->request.set_max_units(1);
    call->request.set_wait_ms(absl::ToInt64Milliseconds(kPoll));
    SetDeadline("RolloutService.LeaseUnits", kPoll, call->context);
    {
      MutexLock lock(&mutex_);
      lease_ = &call->context;
    }
    shared_->Open();
    const MonoTime sent = Clock::Real().Now();
    rollout_->async()->LeaseUnits(&call->context, &call->request,
                                  &call->response,
                                  [this, call, sent](grpc::Status status) {
                                    {
                                      MutexLock lock(&mutex_);
                                      lease_ = nullptr;
                                    }
                                    OnLeased(status, call->response, sent);
                                    shared_->Close();
                                  });
  }

  void OnLeased(const grpc::Status& status,
                const v1::LeaseUnitsResponse& response, MonoTime sent) {
    if (!status.ok()) {
      shared_->Failed("LeaseUnits", status);
      Later(work_, kRetryPause, [this] { Lease(); });
      return;
    }
    if (response.units_size() == 0) {
      Lease();
      return;
    }
    if (shared_->window) {
      MutexLock lock(&shared_->mutex);
      shared_->lease_us.push_back(
          absl::ToDoubleMicroseconds(Clock::Real().Now() - sent));
    }
    leased_ = response.units(0);
    {
      MutexLock lock(&mutex_);
      held_ = leased_->policy().ref().content_hash();
    }
    due_ = Clock::Real().Now() + shared_->options.service_time;
    Work();
  }

  // Waits until the unit is due, renewing the lease at a third of it.
  void Work() {
    const absl::Duration left = due_ - Clock::Real().Now();
    const absl::Duration renew = absl::Milliseconds(leased_->lease_ms()) / 3;
    if (left <= absl::ZeroDuration()) {
      Finish();
    } else if (left <= renew) {
      Later(work_, left, [this] { Finish(); });
    } else {
      Later(work_, renew, [this] { Renew(); });
    }
  }

  void Renew() {
    auto call =
        std::make_shared<Call<v1::RenewLeaseRequest, v1::RenewLeaseResponse>>();
    *call->request.mutable_caller() = caller_;
    *call->request.add_units() = leased_->unit();
    SetDeadline("RolloutService.RenewLease", absl::ZeroDuration(),
                call->context);
    shared_->Open();
    rollout_->async()->RenewLease(&call->context, &call->request,
                                  &call->response,
                                  [this, call](grpc::Status status) {
                                    if (!status.ok())
                                      shared_->Failed("RenewLease", status);
                                    Work();
                                    shared_->Close();
                                  });
  }

  void Finish();
  void SendUnit();
  void OnSubmitted(const grpc::Status& status,
                   const v1::SubmitUnitResponse& response, MonoTime sent);

  Shared* const shared_;
  const int number_;
  std::unique_ptr<v1::RunService::Stub> run_;
  std::unique_ptr<v1::RolloutService::Stub> rollout_;
  v1::Caller caller_;
  int64_t serial_ = 0;
  std::optional<v1::LeasedUnit> leased_;
  std::string payload_;
  std::string payload_sha256_;
  MonoTime due_;
  mutable Mutex mutex_;
  std::string held_ ABSL_GUARDED_BY(mutex_);  // version of the last unit
  Timer work_, beat_, retry_;
  grpc::ClientContext* poll_ ABSL_GUARDED_BY(mutex_) = nullptr;
  grpc::ClientContext* lease_ ABSL_GUARDED_BY(mutex_) = nullptr;
  MonoTime first_ack_ ABSL_GUARDED_BY(mutex_);
  MonoTime last_ack_ ABSL_GUARDED_BY(mutex_);
  int64_t acks_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t samples_after_first_ ABSL_GUARDED_BY(mutex_) = 0;
};

// One attempt to send a unit: header with the first chunk, further chunks.
class SimulatedActors::Actor::Submit
    : public grpc::ClientWriteReactor<v1::SubmitUnitRequest> {
 public:
  explicit Submit(Actor* actor) : actor_(actor) {}
  void Send() {
    SetDeadline("RolloutService.SubmitUnit",
                TransferTime(actor_->payload_.size()), context_);
    v1::SubmitHeader* header = message_.mutable_header();
    *header->mutable_caller() = actor_->caller_;
    *header->mutable_unit() = actor_->leased_->unit();
    header->set_attempt(actor_->leased_->attempt());
    header->set_policy_hash(actor_->leased_->policy().ref().content_hash());
    header->set_payload_sha256(actor_->payload_sha256_);
    header->set_payload_bytes(actor_->payload_.size());
    sent_ = Clock::Real().Now();
    actor_->shared_->Open();
    actor_->rollout_->async()->SubmitUnit(&context_, &response_, this);
    Write();
    StartCall();
  }
  void OnWriteDone(bool ok) override {
    if (ok && offset_ < actor_->payload_.size()) {
      message_.Clear();
      Write();
    }
  }
  void OnDone(const grpc::Status& status) override {
    Actor* const actor = actor_;
    actor->OnSubmitted(status, response_, sent_);
    actor->shared_->Close();
    delete this;
  }

 private:
  void Write() {
    *message_.mutable_chunk() = MakeChunk(offset_, actor_->payload_);
    offset_ += message_.chunk().data().size();
    if (offset_ == actor_->payload_.size()) {
      StartWriteLast(&message_, grpc::WriteOptions());
    } else {
      StartWrite(&message_);
    }
  }

  Actor* const actor_;
  grpc::ClientContext context_;
  v1::SubmitUnitRequest message_;
  v1::SubmitUnitResponse response_;
  size_t offset_ = 0;
  MonoTime sent_;
};

void SimulatedActors::Actor::Finish() {
  absl::StatusOr<std::string> payload = MakePayload(shared_->options, *leased_);
  if (!payload.ok()) {
    shared_->Failed("payload", ToGrpc(payload.status()));
    return;
  }
  payload_ = *std::move(payload);
  payload_sha256_ = Sha256Hex(std::string_view(payload_));
  SendUnit();
}

void SimulatedActors::Actor::SendUnit() { (new Submit(this))->Send(); }

void SimulatedActors::Actor::OnSubmitted(const grpc::Status& status,
                                         const v1::SubmitUnitResponse& response,
                                         MonoTime sent) {
  if (!status.ok()) {
    shared_->Failed("SubmitUnit", status);
    if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
      // Too stale by now: the next lease names a newer version.
      Later(work_, kRetryPause, [this] { Lease(); });
    } else {
      Later(work_, kRetryPause, [this] { SendUnit(); });
    }
    return;
  }
  const MonoTime now = Clock::Real().Now();
  const int64_t samples =
      int64_t{leased_->prompts_size()} * leased_->samples_per_prompt();
  if (shared_->window) {
    MutexLock lock(&mutex_);
    if (++acks_ == 1) {
      first_ack_ = now;
    } else {
      samples_after_first_ += samples;
    }
    last_ack_ = now;
  }
  {
    MutexLock lock(&shared_->mutex);
    // Another result that came first is no loss of this one's making.
    if (response.outcome() != v1::SubmitUnitResponse::ALREADY_CONSUMED) {
      if (const auto unit = FromProto(leased_->unit()); unit.ok()) {
        shared_->acknowledged[*unit] = payload_sha256_;
      }
    }
    if (shared_->window) {
      shared_->ack_us.push_back(absl::ToDoubleMicroseconds(now - sent));
      ++shared_->units;
      shared_->samples += samples;
    }
  }
  Lease();
}

SimulatedActors::SimulatedActors(SimulatedActorOptions options)
    : shared_(std::make_shared<Shared>(std::move(options))) {}

SimulatedActors::~SimulatedActors() { Stop(); }

absl::Status SimulatedActors::Register(absl::Duration limit) {
  for (int i = 0; i < shared_->options.count; ++i) {
    COX_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel,
                         MakeChannel(shared_->options.address));
    actors_.push_back(std::make_unique<Actor>(shared_.get(), i, channel));
    actors_.back()->Register();
    // A cluster's pods do not start in one millisecond either.
    MutexLock lock(&shared_->mutex);
    shared_->changed.WaitFor(shared_->mutex, limit,
                             [this, i]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                               return shared_->registered > i - kStarting;
                             });
  }
  MutexLock lock(&shared_->mutex);
  const int wanted = shared_->options.count;
  if (!shared_->changed.WaitFor(shared_->mutex, limit,
                                [this, wanted]()
                                    ABSL_NO_THREAD_SAFETY_ANALYSIS {
                                      return shared_->registered == wanted;
                                    })) {
    return absl::UnavailableError(
        absl::StrCat("simulated actors: ", shared_->registered, " of ", wanted,
                     " registered; first error: ", shared_->first_error));
  }
  return absl::OkStatus();
}

void SimulatedActors::Start() {
  for (const auto& actor : actors_) actor->Start();
}

void SimulatedActors::BeginWindow() {
  for (const auto& actor : actors_) actor->ResetWindow();
  MutexLock lock(&shared_->mutex);
  shared_->ack_us.clear();
  shared_->lease_us.clear();
  shared_->units = shared_->samples = 0;
  shared_->window = true;
}

void SimulatedActors::EndWindow() { shared_->window = false; }

void SimulatedActors::Stop() {
  if (std::exchange(stopped_, true)) return;
  shared_->stopping = true;
  for (const auto& actor : actors_) actor->Cancel();
  MutexLock lock(&shared_->mutex);
  shared_->changed.WaitFor(
      shared_->mutex, absl::InfiniteDuration(),
      [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return shared_->open == 0; });
}

SimulatedActors::Result SimulatedActors::TakeResult() {
  Result result;
  for (const auto& actor : actors_) {
    result.samples_s += actor->SamplesPerSecond();
  }
  MutexLock lock(&shared_->mutex);
  result.units = shared_->units;
  result.samples = shared_->samples;
  result.ack_us = std::move(shared_->ack_us);
  result.lease_us = std::move(shared_->lease_us);
  result.failed_calls = shared_->failed;
  result.first_error = shared_->first_error;
  return result;
}

std::map<UnitId, std::string> SimulatedActors::Acknowledged() const {
  MutexLock lock(&shared_->mutex);
  return shared_->acknowledged;
}

int64_t SimulatedActors::failed_calls() const {
  MutexLock lock(&shared_->mutex);
  return shared_->failed;
}

}  // namespace cox
