#ifndef COX_CLI_CHAOS_RUN_H_
#define COX_CLI_CHAOS_RUN_H_

// One run of real processes under faults, from its start to its end.

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "cli/chaos_plan.h"
#include "cli/chaos_proxy.h"
#include "cli/status_watch.h"
#include "lib/base/clock.h"
#include "lib/base/process.h"
#include "lib/base/status.h"

namespace cox {

// A fault that was delivered, and how the run got over it. Times from its
// delivery; absent when another fault came first.
struct DeliveredFault {
  Fault fault;
  std::string victim;  // "actor-0", "all"
  std::string run;     // name of its directory
  std::string wall;    // when, as in the roles' logs
  // The coordinator no longer counts on the old process.
  std::optional<absl::Duration> noticed;
  // The role serves again: a session in a new place; the coordinator answers
  // in a new epoch; the learner group has committed a step.
  std::optional<absl::Duration> serving;
  // A further step was committed.
  std::optional<absl::Duration> commit;
};

struct ChaosRunOptions {
  std::string file;
  std::vector<std::string> overrides;
  std::string run_dir;
  std::string log;
  bool proxy = false;  // between the actors and the coordinator
  // Without a commit for this long the run is stuck.
  absl::Duration patience = absl::Seconds(120);
};

class ChaosRun {
 public:
  // Takes faults from the front of `faults`; those that the run ended before
  // stay there.
  ChaosRun(ChaosRunOptions options, std::deque<Fault>* faults);
  ~ChaosRun();

  // OK: the run has ended with 0. Otherwise what went wrong, for people:
  // ABORTED an exit code nobody expected, DEADLINE_EXCEEDED stuck, CANCELLED
  // this process was asked to leave.
  absl::Status Drive();

  const std::vector<DeliveredFault>& delivered() const { return delivered_; }
  int starts() const { return starts_; }
  // Ends with 42 that no fault of ours explains.
  int unexplained_ends() const { return unexplained_; }

 private:
  struct Watched {  // a fault that is not overcome yet
    size_t index = 0;
    MonoTime at;
    int64_t epoch = 0;
    int64_t generation = 0;
    int64_t progress = 0;
    // Name and address of those that may be the victim: a place in the code
    // is passed by all processes of a role.
    std::vector<std::pair<std::string, std::string>> suspects;
  };
  struct Paused {
    pid_t pid = 0;
    MonoTime until;
  };

  absl::Status Launch();
  // True: the run is complete.
  absl::StatusOr<bool> OnExit(const ChildExit& exit);
  void NextFault();
  void Deliver(const Fault& fault);
  // False: no such process now; the fault is tried again.
  bool Strike(const Fault& fault, const std::string& name);
  void KillEverything();
  void PollArmed();
  void NobodyCameBy();
  void Record(const Fault& fault, const std::string& victim);
  void Observe();
  void EndPauses(bool all);
  absl::Status CheckProgress();
  std::string ArmPath() const;
  std::string VictimName(const Fault& fault) const;
  void ObserveSession(const Watched& watched, const StatusWatch::View& view,
                      absl::Duration since);

  const ChaosRunOptions options_;
  std::deque<Fault>* const faults_;
  std::vector<DeliveredFault> delivered_;
  std::vector<Watched> watched_;
  std::vector<Paused> paused_;
  std::unique_ptr<ChaosProxy> proxy_;
  std::optional<MonoTime> proxy_until_;
  std::unique_ptr<StatusWatch> watch_;
  pid_t pid_ = 0;
  bool killed_by_us_ = false;
  int starts_ = 0;
  int unexplained_ = 0;
  int arm_count_ = 0;
  std::optional<MonoTime> armed_until_;
  MonoTime due_;            // of the fault at the front
  bool scheduled_ = false;  // `due_` is set
  int64_t last_progress_ = -1;
  MonoTime progress_at_;
  MonoTime launched_;
};

}  // namespace cox

#endif  // COX_CLI_CHAOS_RUN_H_
