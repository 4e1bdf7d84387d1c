#ifndef COX_TESTS_SIM_WORKER_PROCESS_H_
#define COX_TESTS_SIM_WORKER_PROCESS_H_

// Actors and reward replicas, and what all clients of the coordinator share:
// sessions, heartbeats, calls that are repeated until they are answered.

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "actor/actor_core.h"
#include "lib/rpc/error_reason.h"
#include "tests/sim/coordinator_process.h"
#include "tests/sim/world.h"

namespace cox::sim {

class WorkerProcess : public Process {
 public:
  // Whether a weight transfer from here would succeed.
  bool Serves(const std::string& hash) const { return held_.contains(hash); }

 protected:
  WorkerProcess(World& world, Role its_role, std::string its_name,
                int32_t rank);

  template <typename T>
  using Request =
      std::function<void(CoordinatorProcess&, const CoreCaller&, ReplyTo<T>)>;
  // As CoordinatorClient: again after silence or UNAVAILABLE, after registering
  // again when the session or epoch is not known. `wait`: of a long poll.
  template <typename T>
  void Call(Ns wait, Request<T> request, ReplyTo<T> done) {
    auto call = std::make_shared<CallState<T>>();
    call->wait = wait;
    call->request = std::move(request);
    call->done = std::move(done);
    Attempt(call);
  }
  void Register(std::function<void()> then);
  void StartHeartbeat();
  CoreCaller Caller() const;

  void OnKilled() override;
  // Starts a session; `then` once it is registered.
  void Connect(std::function<void()> then);
  // The run has nothing for this process any more.
  virtual void OnFatal(const absl::Status& status);
  // The next assignment whose serial differs from `serial`; each poll waits for
  // at most `poll`.
  void AwaitAssignment(Ns poll, int64_t serial,
                       std::function<void(const AssignmentData&)> then);
  // Fetches `hash` from the first source that serves it.
  void Fetch(const SourceData& source, std::function<void(bool)> done);
  void Report();

  std::string session_;
  int64_t epoch_ = 0;
  int64_t generation_ = 0;
  const int32_t rank_;
  std::set<std::string> held_;

 private:
  template <typename T>
  struct CallState {
    Ns wait = 0;
    Request<T> request;
    ReplyTo<T> done;
    int attempts = 0;
    int round = 0;  // of the attempt that is waited for
    bool finished = false;
  };

  template <typename T>
  void Attempt(const std::shared_ptr<CallState<T>>& call) {
    const int round = ++call->round;
    CoordinatorProcess& coordinator = world_.CoordinatorFor(*this);
    world_.Send(
        *this, coordinator, -1,
        [this, call, &coordinator, caller = Caller(), of = incarnation] {
          call->request(
              coordinator, caller,
              [this, call, &coordinator, of](const absl::StatusOr<T>& result) {
                world_.Send(coordinator, *this, of,
                            [this, call, result] { OnReply(call, result); });
              });
        });
    After(call->wait + 1500 * kMs, [this, call, round] {
      if (!call->finished && call->round == round) {
        Again(call);
      }
    });
  }
  template <typename T>
  void Again(const std::shared_ptr<CallState<T>>& call) {
    const Ns pause =
        std::min<Ns>(100 * kMs << std::min(call->attempts, 4), 1600 * kMs);
    ++call->attempts;
    ++call->round;
    After(pause, [this, call] {
      if (!call->finished) {
        Attempt(call);
      }
    });
  }
  template <typename T>
  void OnReply(const std::shared_ptr<CallState<T>>& call,
               const absl::StatusOr<T>& result) {
    if (call->finished) {
      return;
    }
    const ErrorReason reason = ReasonOf(result.status());
    if (reason == ErrorReason::kUnknownSession ||
        reason == ErrorReason::kStaleEpoch) {
      ++call->round;
      return Register([this, call] {
        if (!call->finished) {
          Attempt(call);
        }
      });
    }
    if (absl::IsUnavailable(result.status())) {
      return Again(call);
    }
    call->finished = true;
    call->done(result);
  }

  void Beat();

  bool registering_ = false;
  std::vector<std::function<void()>> waiting_;  // for the registration
};

class ActorProcess : public WorkerProcess {
 public:
  ActorProcess(World& world, std::string its_name);

 protected:
  void OnStart() override;
  void OnKilled() override;

 private:
  struct Work {
    LocalLease lease = 0;
    LeaseGrant grant;
    std::string payload;
    bool wrong = false;  // a liar's, in the place of the result
  };
  void AssignmentLoop(int64_t serial);
  void Step();
  void Lease(int max_units);
  void Swap(LocalLease lease);
  void Generate(LocalLease lease);
  void Score(const Work& work, int attempt);
  void Submit(const Work& work);
  void SendSubmission(const Work& work, SubmitEvent event, bool lie);
  void GiveBack(const Work& work);
  void Finished(LocalLease lease);
  void RenewLoop();

  std::optional<ActorCore> core_;
  bool busy_ = false;  // leasing, swapping or generating
  std::string held_hash_;
  std::map<LocalLease, Work> work_;
  int64_t renewals_ = 0;
};

class RewardProcess : public WorkerProcess {
 public:
  RewardProcess(World& world, std::string its_name);

 protected:
  void OnStart() override;

 private:
  void AssignmentLoop(int64_t serial);
  void Hold(std::vector<SourceData> models, int64_t serial);
};

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_WORKER_PROCESS_H_
