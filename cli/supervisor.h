#ifndef COX_CLI_SUPERVISOR_H_
#define COX_CLI_SUPERVISOR_H_

// Keeps the processes of a run alive on one machine. The decision what to do
// with a child that ended is a pure function, so it is tested without
// processes; the loop around it only starts, polls and signals.

#include <sys/types.h>

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/backoff.h"
#include "lib/base/clock.h"
#include "lib/base/process.h"
#include "lib/base/status.h"

namespace cox {

struct RestartOptions {
  int max_restarts = 30;  // per child within `window`
  absl::Duration window = absl::Minutes(10);
  BackoffOptions backoff{.initial = absl::Milliseconds(200),
                         .maximum = absl::Seconds(5)};
};

// Restart history and backoff of one child. Thread-compatible.
class RestartPolicy {
 public:
  enum class Action {
    kFinished,  // exited 0: its work is done
    kRestart,   // died by a signal or with 42: start again after `delay`
    kEndRun,    // 1, 2, 43, an unknown code, or too many restarts
  };
  struct Decision {
    Action action = Action::kFinished;
    absl::Duration delay;  // kRestart
    int exit_code = 0;     // kEndRun: the run's exit code
    std::string reason;    // for people
  };

  RestartPolicy(RestartOptions options, uint64_t jitter_seed)
      : options_(options), backoff_(options.backoff, jitter_seed) {}

  // `ran_for`: how long this incarnation lived; a long life resets the
  // backoff.
  Decision OnExit(const ChildExit& exit, absl::Duration ran_for, MonoTime now);

 private:
  RestartOptions options_;
  Backoff backoff_;
  std::deque<MonoTime> restarts_;
};

struct ChildSpec {
  std::string name;  // "actor-0": also the log's name
  std::string role;  // "coordinator", "actor", "reward", "learner"
  ChildOptions options;
};

// Runs children until the run ends. One thread.
class Supervisor {
 public:
  Supervisor(std::vector<ChildSpec> children, RestartOptions options,
             const Clock& clock);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Starts the child of that name now. INTERNAL when it cannot be started.
  absl::Status Start(const std::string& name);
  absl::Status StartAll();

  // How many children of `role` there shall be, named "<role>-0" and so on.
  // Missing ones are started as `make(index)` says, those with the highest
  // numbers get SIGTERM and are not started again.
  absl::Status Resize(const std::string& role, int32_t count,
                      const std::function<ChildSpec(int32_t index)>& make);

  // SIGKILL to a child that has run for at least `age`; it is started again
  // like any other that was killed. True if there was one.
  bool KillHung(const std::string& name, absl::Duration age);

  // One round: reaps, restarts what is due. Returns the run's exit code once
  // it is decided: the coordinator finished (0), or a child ended the run.
  std::optional<int> Poll();

  // SIGTERM to all, coordinator last, then SIGKILL after `grace`. Idempotent.
  void Drain(absl::Duration grace);

  // Why Poll() decided as it did; restarts so far.
  const std::string& reason() const { return reason_; }
  int restarts() const { return restarts_; }
  // Asked before a child that exited with 42 is started again: false = the run
  // drains, the child is done. Default: always true.
  void ShouldRestart(std::function<bool()> f) {
    should_restart_ = std::move(f);
  }
  // Called for each restart, with the child's name and why.
  void OnRestart(
      std::function<void(const std::string&, const std::string&)> f) {
    on_restart_ = std::move(f);
  }
  std::vector<std::pair<std::string, pid_t>> Pids() const;

 private:
  struct Child {
    ChildSpec spec;
    RestartPolicy policy;
    pid_t pid = 0;  // 0: not running
    MonoTime started;
    bool finished = false;
    bool retiring = false;  // was told to leave
    std::optional<MonoTime> restart_at;
  };
  Child& AddChild(ChildSpec spec);
  absl::Status StartChild(Child& child);
  std::optional<int> Reap(Child& child);

  std::vector<Child> children_;
  const RestartOptions options_;
  const Clock& clock_;
  std::string reason_;
  int restarts_ = 0;
  std::function<void(const std::string&, const std::string&)> on_restart_;
  std::function<bool()> should_restart_;
};

}  // namespace cox

#endif  // COX_CLI_SUPERVISOR_H_
