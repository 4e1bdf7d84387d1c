#ifndef COX_TESTS_SIM_WORLD_H_
#define COX_TESTS_SIM_WORLD_H_

// One machine with the processes of a run, in virtual time and one thread.
// Everything is a function of the seed, the list of faults and the rules.

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/memory_ledger.h"
#include "lib/base/fault_fs.h"
#include "lib/base/rng.h"
#include "tests/sim/checker.h"
#include "tests/sim/event_loop.h"
#include "tests/sim/faults.h"
#include "tests/sim/model.h"
#include "tests/sim/rules.h"

namespace cox::sim {

class World;
class CoordinatorProcess;
class LearnerProcess;

enum class Role { kCoordinator, kActor, kReward, kLearner };

// A process and the supervisor that starts it again. What it holds in memory
// belongs to one incarnation.
class Process {
 public:
  Process(World& world, Role role, std::string name);
  virtual ~Process() = default;
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // SIGKILL, or its own end: it starts again after a while.
  void Kill(const char* why);
  void Stop(Ns duration);  // SIGSTOP, SIGCONT after `duration`
  // `task` after `delay`, in this incarnation or not at all; while the process
  // is stopped it waits.
  void After(Ns delay, EventLoop::Task task);

  const Role role;
  const std::string name;
  bool alive = false;
  int64_t incarnation = 0;
  Ns stopped_until = 0;
  bool restarts = true;

 protected:
  virtual void OnStart() = 0;
  virtual void OnKilled() = 0;
  World& world_;

 private:
  friend class World;
  void Begin();
  void Run(int64_t incarnation, EventLoop::Task& task);
};

struct SimOptions {
  uint64_t seed = 0;
  Rules rules;
  bool trace = false;          // keep the last events as text
  std::vector<bool> left_out;  // faults that do not happen (shrinking)
};

struct SimResult {
  bool ok = false;
  std::string violation;  // what, when not ok
  Variant variant;
  std::vector<Fault> faults;
  std::vector<std::string> last_events;  // with `trace`
  std::string final_weights;
  size_t failed_units = 0;  // given up: the weights are others
  size_t removed_segments = 0;
  Coverage coverage;
  int64_t events = 0;
  Ns virtual_time = 0;
};

// Runs one schedule: faults, then a healed machine that must finish in bounded
// virtual time.
SimResult Simulate(const SimOptions& options);

class World {
 public:
  explicit World(const SimOptions& options);
  ~World();
  SimResult Run();

  // --- Seams
  EventLoop loop;
  CounterRng rng;
  FaultFs fs;       // the run directory: segments, checkpoints
  MemoryDisk disk;  // the ledger
  const Variant variant;
  const RunPlan plan;
  const Rules rules;
  Checker checker;
  int32_t world_size = 1;
  bool checkpoint_beside = false;
  bool audit = false;  // every unit is computed twice
  int32_t poison_after = 0;
  std::optional<UnitId> poison;         // kills whoever computes it
  uint64_t payload_bytes = UINT64_MAX;  // retention

  // --- Messages: `deliver` runs at `to` after the network's time, or never,
  // or twice. `incarnation` -1 = whoever lives then.
  void Send(Process& from, Process& to, int64_t incarnation,
            std::function<void()> deliver);
  // The coordinator that `from` can reach now.
  CoordinatorProcess& CoordinatorFor(const Process& from);
  Process* FindAddress(const std::string& address);
  LearnerProcess* Rank(int32_t rank);

  // --- The disk
  // Every commit and every group of file operations passes here afterwards:
  // carries out a crash that hit it. True: the caller is dead.
  bool AfterDiskUse(Process& user);
  absl::Status CommitAllowed();  // of a ledger transaction; counts it

  bool Lies(const Process& actor) const;
  double WallTime() const {
    return static_cast<double>(loop.now()) / kSecond + wall_offset_s_;
  }
  std::string NewSession() { return absl::StrCat("session-", ++sessions_); }
  Ns Jitter(Ns from, Ns to);
  // Whether events are kept as text; Trace() is not worth calling otherwise.
  bool tracing() const { return options_.trace; }
  void Trace(const std::string& text);
  bool finished() const { return finished_; }
  void Finish() { finished_ = true; }

 private:
  struct ArmedCrash {
    int64_t at_operation = 0;
    bool power = false;
    FaultKind kind = FaultKind::kPowerLoss;
  };
  void DrawMore();
  void Arm();
  void Apply(const Fault& fault);
  void Hit(FaultKind kind);
  void Heal();
  void PowerLoss();
  void StartSecondCoordinator(Ns old_stops_after);
  Process& Pick(Role role, int target);
  bool Matches(const Fault& fault, const Process& worker) const;
  int64_t DiskOperations() const { return fs.operations() + commits_; }

  const SimOptions options_;
  std::vector<Fault> faults_;
  std::vector<const Fault*> active_;  // with a duration
  std::vector<std::unique_ptr<CoordinatorProcess>> coordinators_;
  std::vector<std::unique_ptr<Process>> workers_;
  std::vector<LearnerProcess*> ranks_;  // among them
  std::optional<ArmedCrash> armed_;
  bool disk_full_ = false;
  int64_t commits_ = 0;
  double wall_offset_s_ = 0;
  int64_t sessions_ = 0;
  bool healed_ = false;
  bool finished_ = false;
  Coverage coverage_;
  std::deque<std::string> events_;
};

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_WORLD_H_
