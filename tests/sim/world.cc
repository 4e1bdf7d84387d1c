#include "tests/sim/world.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/sim/coordinator_process.h"
#include "tests/sim/learner_process.h"
#include "tests/sim/worker_process.h"

namespace cox::sim {
namespace {

// Faults begin within the first seven seconds and last 18 at most.
constexpr Ns kHealAt = 26 * kSecond;
// Longest waits in a row: silence, lease, collective, back-off, a stage of
// recomputed steps.
constexpr Ns kPatience = 150 * kSecond;
constexpr int64_t kMaxEvents = 200000;
constexpr size_t kKeptEvents = 50;
constexpr int kActors = 2;
constexpr int kAuditActors = 3;  // two must agree while one lies

Variant DrawVariant(CounterRng& rng) {
  Variant variant;
  variant.stages = static_cast<int>(rng.NextBelow(kStageLists));
  variant.schedule = static_cast<int>(rng.NextBelow(kSchedules));
  return variant;
}

Role TargetRole(FaultKind kind) {
  switch (kind) {
    case FaultKind::kKillReward:
      return Role::kReward;
    case FaultKind::kKillLearner:
    case FaultKind::kStopLearner:
      return Role::kLearner;
    case FaultKind::kKillCoordinator:
    case FaultKind::kStopCoordinator:
      return Role::kCoordinator;
    default:
      return Role::kActor;
  }
}

}  // namespace

Process::Process(World& world, Role its_role, std::string its_name)
    : role(its_role), name(std::move(its_name)), world_(world) {}

void Process::Begin() {
  if (alive || !restarts) {
    return;
  }
  alive = true;
  ++incarnation;
  stopped_until = 0;
  OnStart();
}

void Process::Kill(const char* why) {
  if (!alive) {
    return;
  }
  if (world_.tracing()) {
    world_.Trace(absl::StrCat(name, " ends: ", why));
  }
  alive = false;
  ++incarnation;
  OnKilled();
  world_.loop.At(world_.loop.now() + world_.Jitter(200 * kMs, 900 * kMs),
                 [this] { Begin(); });
}

void Process::Stop(Ns duration) {
  stopped_until = std::max(stopped_until, world_.loop.now() + duration);
}

void Process::Run(int64_t of, EventLoop::Task& task) {
  if (of != incarnation || !alive) {
    return;
  }
  if (world_.loop.now() < stopped_until) {
    world_.loop.At(stopped_until, [this, of, task = std::move(task)]() mutable {
      Run(of, task);
    });
    return;
  }
  task();
}

void Process::After(Ns delay, EventLoop::Task task) {
  world_.loop.At(world_.loop.now() + delay,
                 [this, of = incarnation, task = std::move(task)]() mutable {
                   Run(of, task);
                 });
}

World::World(const SimOptions& options)
    : rng(options.seed, "simulation"),
      variant(DrawVariant(rng)),
      plan(MakePlan(variant)),
      rules(options.rules),
      checker(variant, plan, fs),
      options_(options) {
  world_size = rng.NextBelow(3) == 0 ? 2 : 1;
  checkpoint_beside = rng.NextBelow(2) == 0;
  audit = rng.NextBelow(4) == 0 && variant.schedule != kSchedules - 1;
  poison_after = rng.NextBelow(2) == 0 ? 2 : 0;
  faults_ = DrawFaults(rng);
  DrawMore();
  disk.fenced = rules.fence;
  disk.synced = rules.synced_ledger;
  COX_CHECK(fs.MakeDirs("/run").ok() && fs.SyncDir("/").ok());
  coordinators_.push_back(
      std::make_unique<CoordinatorProcess>(*this, "coordinator"));
  for (int i = 0; i < (audit ? kAuditActors : kActors); ++i) {
    workers_.push_back(
        std::make_unique<ActorProcess>(*this, absl::StrCat("actor-", i)));
  }
  workers_.push_back(std::make_unique<RewardProcess>(*this, "reward-0"));
  for (int32_t r = 0; r < world_size; ++r) {
    workers_.push_back(std::make_unique<LearnerProcess>(
        *this, absl::StrCat("learner-", r), r));
    ranks_.push_back(static_cast<LearnerProcess*>(workers_.back().get()));
  }
}

World::~World() = default;

// From random numbers of its own, so that the schedules of earlier seeds stay
// what they were where it draws nothing.
void World::DrawMore() {
  CounterRng more(options_.seed, "retention");
  if (more.NextBelow(2) == 0) {
    payload_bytes = more.NextBelow(2) == 0 ? 0 : 1000;
  }
  if (more.NextBelow(4) == 0) {
    const auto of = static_cast<int32_t>(
        more.NextBelow(static_cast<uint64_t>(plan.num_stages())));
    const StagePlan& stage = plan.stage(of);
    if (stage.has_units()) {
      poison = UnitId{of,
                      1 + static_cast<int64_t>(more.NextBelow(
                              static_cast<uint64_t>(stage.total_steps))),
                      static_cast<int32_t>(more.NextBelow(
                          static_cast<uint64_t>(stage.units_per_step())))};
    }
  }
}

Ns World::Jitter(Ns from, Ns to) {
  return from +
         static_cast<Ns>(rng.NextBelow(static_cast<uint64_t>(to - from) + 1));
}

void World::Trace(const std::string& text) {
  events_.push_back(absl::StrFormat(
      "%9.4f %s", static_cast<double>(loop.now()) / kSecond, text));
  if (events_.size() > kKeptEvents) {
    events_.pop_front();
  }
}

bool World::Matches(const Fault& fault, const Process& worker) const {
  // A quarter of the message faults hits everybody.
  return fault.target % 4 == 0 ||
         workers_[static_cast<size_t>(fault.target) % workers_.size()].get() ==
             &worker;
}

void World::Send(Process& from, Process& to, int64_t incarnation,
                 std::function<void()> deliver) {
  const bool request = to.role == Role::kCoordinator;
  const Process& worker = request ? from : to;
  Ns delay = Jitter(1 * kMs, 4 * kMs);
  int copies = 1;
  for (const Fault* fault : active_) {
    if (!Matches(*fault, worker)) {
      continue;
    }
    switch (fault->kind) {
      case FaultKind::kPartition:
        copies = 0;
        break;
      case FaultKind::kPartitionOneWay:
        copies = request == (fault->operation % 2 == 0) ? 0 : copies;
        break;
      case FaultKind::kLoss:
        copies = rng.NextUniform() < fault->rate ? 0 : copies;
        break;
      case FaultKind::kDuplicate:
        copies += copies > 0 && rng.NextUniform() < fault->rate ? 1 : 0;
        break;
      case FaultKind::kDelay:
        delay +=
            rng.NextUniform() < fault->rate ? Jitter(kSecond, 15 * kSecond) : 0;
        break;
      case FaultKind::kReorder:
        delay += Jitter(0, 300 * kMs);
        break;
      default:
        break;
    }
  }
  for (; copies > 0; --copies) {
    loop.At(loop.now() + delay, [&to, incarnation, deliver]() {
      EventLoop::Task task = deliver;
      to.Run(incarnation < 0 ? to.incarnation : incarnation, task);
    });
    delay += Jitter(0, 500 * kMs);
  }
}

CoordinatorProcess& World::CoordinatorFor(const Process& /*from*/) {
  // While two live, callers are divided: their address is stale or not.
  if (coordinators_.size() > 1 &&
      coordinators_[coordinators_.size() - 2]->alive && rng.NextBelow(2) == 0) {
    return *coordinators_[coordinators_.size() - 2];
  }
  return *coordinators_.back();
}

Process* World::FindAddress(const std::string& address) {
  for (const auto& worker : workers_) {
    if (worker->alive && address == worker->name) {
      return worker.get();
    }
  }
  return nullptr;
}

LearnerProcess* World::Rank(int32_t rank) {
  return ranks_[static_cast<size_t>(rank)];
}

Process& World::Pick(Role role, int target) {
  std::vector<Process*> candidates;
  for (const auto& worker : workers_) {
    if (worker->role == role) {
      candidates.push_back(worker.get());
    }
  }
  if (candidates.empty()) {
    return *coordinators_.back();
  }
  return *candidates[static_cast<size_t>(target) % candidates.size()];
}

void World::Hit(FaultKind kind) {
  SimState state = SimState::kText;
  const CoordinatorCore* core = coordinators_.back()->core();
  if (core != nullptr && !core->done()) {
    const StagePlan& stage = plan.stage(core->current_stage());
    if (stage.kind == StageKind::kCollect || stage.kind == StageKind::kEval) {
      state = SimState::kUnits;
    } else if (stage.kind == StageKind::kPpo) {
      state = SimState::kPpo;
    }
  }
  const LearnerProcess& learner = *Rank(0);
  if (!learner.alive || !learner.training()) {
    state = state == SimState::kUnits ? state : SimState::kNoGroup;
  } else if (core != nullptr && learner.completed() < core->committed()) {
    state = SimState::kReplay;
  }
  ++coverage_.at(kind, state);
}

void World::Arm() {
  for (size_t i = 0; i < faults_.size(); ++i) {
    if (i < options_.left_out.size() && options_.left_out[i]) {
      continue;
    }
    loop.At(faults_[i].at, [this, i] { Apply(faults_[i]); });
  }
  loop.At(kHealAt, [this] { Heal(); });
}

void World::Apply(const Fault& fault) {
  if (healed_ || finished_) {
    return;
  }
  if (tracing()) {
    Trace(absl::StrCat("FAULT ", fault.ToString()));
  }
  switch (fault.kind) {
    case FaultKind::kKillActor:
    case FaultKind::kKillReward:
    case FaultKind::kKillLearner:
    case FaultKind::kKillCoordinator:
      Hit(fault.kind);
      return Pick(TargetRole(fault.kind), fault.target).Kill("killed");
    case FaultKind::kStopActor:
    case FaultKind::kStopLearner:
    case FaultKind::kStopCoordinator:
      Hit(fault.kind);
      return Pick(TargetRole(fault.kind), fault.target).Stop(fault.duration);
    case FaultKind::kSecondCoordinator:
      Hit(fault.kind);
      return StartSecondCoordinator(fault.duration);
    case FaultKind::kPowerLoss:
      Hit(fault.kind);
      return PowerLoss();
    case FaultKind::kKillAtOperation:
    case FaultKind::kPowerLossAtOperation:
    case FaultKind::kSyncError:
      if (!armed_.has_value() && !disk_full_) {
        armed_ = {DiskOperations() + fault.operation,
                  fault.kind == FaultKind::kPowerLossAtOperation, fault.kind};
        fs.FailAt(fault.operation, absl::InternalError("the disk failed"),
                  fault.kind != FaultKind::kSyncError);
      }
      return;
    case FaultKind::kDiskFull:
      if (armed_.has_value() || disk_full_) {
        return;
      }
      disk_full_ = true;
      fs.FailAt(1, absl::ResourceExhaustedError("no space left"), true);
      loop.At(loop.now() + fault.duration, [this] {
        if (disk_full_) {
          disk_full_ = false;
          fs.Heal();
        }
      });
      break;
    case FaultKind::kWallClockJump:
      wall_offset_s_ += (fault.operation % 2 == 0 ? 1 : -1) * 86400.0;
      break;
    default:  // of messages, of an actor: while it lasts
      active_.push_back(&fault);
      loop.At(loop.now() + fault.duration,
              [this, &fault] { std::erase(active_, &fault); });
      break;
  }
  Hit(fault.kind);
}

void World::Heal() {
  healed_ = true;
  active_.clear();
  armed_.reset();
  disk_full_ = false;
  fs.Heal();
  for (const auto& worker : workers_) {
    worker->stopped_until = std::min(worker->stopped_until, loop.now());
  }
  for (const auto& coordinator : coordinators_) {
    coordinator->stopped_until =
        std::min(coordinator->stopped_until, loop.now());
  }
  if (tracing()) {
    Trace("healed");
  }
}

void World::PowerLoss() {
  for (const auto& worker : workers_) {
    worker->Kill("power loss");
  }
  for (const auto& coordinator : coordinators_) {
    coordinator->Kill("power loss");
  }
  fs.Crash(rng);
  disk.Crash(rng);
  armed_.reset();
  if (disk_full_) {
    fs.FailAt(1, absl::ResourceExhaustedError("no space left"), true);
  }
}

void World::StartSecondCoordinator(Ns old_stops_after) {
  CoordinatorProcess& old = *coordinators_.back();
  if (coordinators_.size() > 3) {
    return;
  }
  old.restarts = false;
  if (old_stops_after % 2 == 0) {
    old.Stop(old_stops_after);
  }
  coordinators_.push_back(std::make_unique<CoordinatorProcess>(
      *this, absl::StrCat("coordinator-", coordinators_.size())));
  coordinators_.back()->Begin();
}

absl::Status World::CommitAllowed() {
  ++commits_;
  if (disk_full_) {
    return absl::ResourceExhaustedError("no space left");
  }
  if (!armed_.has_value()) {
    return absl::OkStatus();
  }
  // The file system counts its own operations only: move its mark.
  const int64_t left = armed_->at_operation - DiskOperations();
  if (left >= 1) {
    fs.FailAt(left, absl::InternalError("the disk failed"),
              armed_->kind != FaultKind::kSyncError);
    return absl::OkStatus();
  }
  return left == 0 || armed_->kind != FaultKind::kSyncError
             ? absl::InternalError("the disk failed")
             : absl::OkStatus();
}

bool World::AfterDiskUse(Process& user) {
  if (!armed_.has_value() || DiskOperations() < armed_->at_operation) {
    return false;
  }
  const ArmedCrash crash = *armed_;
  armed_.reset();
  fs.Heal();
  Hit(crash.kind);
  if (crash.power) {
    PowerLoss();
    return true;
  }
  if (crash.kind == FaultKind::kKillAtOperation) {
    user.Kill("killed in a disk operation");
    return true;
  }
  return false;  // its error was returned, the process decides
}

bool World::Lies(const Process& actor) const {
  if (audit && &actor != workers_.front().get()) {
    return false;  // a majority is honest
  }
  return std::any_of(active_.begin(), active_.end(), [&](const Fault* fault) {
    return fault->kind == FaultKind::kLyingActor && Matches(*fault, actor);
  });
}

SimResult World::Run() {
  Arm();
  for (const auto& coordinator : coordinators_) {
    coordinator->Begin();
  }
  for (const auto& worker : workers_) {
    worker->Begin();
  }
  const Ns deadline = kHealAt + kPatience;
  while (!finished_ && checker.ok() && loop.now() < deadline &&
         loop.events() < kMaxEvents && loop.RunOne()) {
  }
  if (checker.ok() && !finished_) {
    const CoordinatorCore* core = coordinators_.back()->core();
    checker.Violation(absl::StrCat(
        "invariant 13: stuck",
        core == nullptr ? ""
                        : absl::StrCat(" in stage ", core->current_stage(),
                                       " after step ", core->committed())));
  }
  if (checker.ok()) {
    checker.OnDone(disk.state);
  }
  SimResult result;
  result.ok = checker.ok();
  result.violation = checker.violation();
  result.variant = variant;
  result.faults = faults_;
  result.last_events.assign(events_.begin(), events_.end());
  for (const StepRow& row : disk.state.steps) {
    result.final_weights = row.weight_hash;
  }
  result.failed_units = disk.state.failed_units.size();
  result.removed_segments = disk.state.removed_segments.size();
  result.coverage = coverage_;
  result.events = loop.events();
  result.virtual_time = loop.now();
  return result;
}

SimResult Simulate(const SimOptions& options) { return World(options).Run(); }

}  // namespace cox::sim
