#include "cli/chaos_run.h"

#include <unistd.h>

#include <csignal>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/run_directory.h"
#include "lib/base/fs.h"

namespace cox {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(5);
// A place may lie on a path that this run does not take any more.
constexpr absl::Duration kArmedFor = absl::Seconds(4);
constexpr int kMaxUnexplained = 3;
// Whose process did not come back by then is not waited for.
constexpr absl::Duration kForget = absl::Seconds(30);

// Port of the run's coordinator now; 0 = none.
int CoordinatorPort(const std::string& run_dir) {
  const auto endpoints = ReadEndpoints(run_dir);
  if (!endpoints.ok()) return 0;
  const size_t colon = endpoints->coordinator.rfind(':');
  return colon == std::string::npos
             ? 0
             : std::atoi(endpoints->coordinator.c_str() + colon + 1);
}

}  // namespace

ChaosRun::ChaosRun(ChaosRunOptions options, std::deque<Fault>* faults)
    : options_(std::move(options)), faults_(faults) {}

ChaosRun::~ChaosRun() {
  EndPauses(/*all=*/true);
  if (pid_ != 0) KillEverything();
}

std::string ChaosRun::ArmPath() const {
  return JoinPath(options_.run_dir, "failpoint");
}

absl::Status ChaosRun::Launch() {
  ChildOptions child;
  child.argv = {JoinPath(ExecutableDir(), "cox"), "run", options_.file,
                absl::StrCat("run_dir=", options_.run_dir)};
  child.argv.insert(child.argv.end(), options_.overrides.begin(),
                    options_.overrides.end());
  // Faults come much faster than a supervisor has to bear otherwise.
  child.argv.insert(child.argv.end(), {"--quiet", "--max-restarts", "1000000"});
  if (proxy_ != nullptr) {
    child.argv.insert(
        child.argv.end(),
        {"--actor-endpoints", JoinPath(options_.run_dir, "proxy.json")});
  }
  child.extra_env["COX_FAILPOINT"] = absl::StrCat("@", ArmPath());
  child.log_path = options_.log;
  COX_ASSIGN_OR_RETURN(pid_, SpawnChild(child));
  ++starts_;
  killed_by_us_ = false;
  launched_ = Clock::Real().Now();
  return absl::OkStatus();
}

absl::StatusOr<bool> ChaosRun::OnExit(const ChildExit& exit) {
  pid_ = 0;
  if (exit.signal == 0 && exit.code == kExitDone) return true;
  if (!killed_by_us_) {
    const bool resumable = exit.signal == 0 && exit.code == kExitRetryable;
    if (!resumable || ++unexplained_ > kMaxUnexplained) {
      return absl::AbortedError(
          absl::StrCat("cox run ended with ",
                       exit.signal != 0 ? absl::StrCat("signal ", exit.signal)
                                        : absl::StrCat("exit code ", exit.code),
                       " (log: ", options_.log, ")"));
    }
  }
  return false;
}

absl::Status ChaosRun::Drive() {
  COX_RETURN_IF_ERROR(Fs::Real().MakeDirs(options_.run_dir));
  (void)Fs::Real().RemoveAll(ArmPath());
  if (options_.proxy) {
    COX_ASSIGN_OR_RETURN(proxy_, ChaosProxy::Start([dir = options_.run_dir] {
                           return CoordinatorPort(dir);
                         }));
    COX_RETURN_IF_ERROR(WriteFileDurably(
        Fs::Real(), JoinPath(options_.run_dir, "proxy.json"),
        absl::StrCat("{\"coordinator\":\"127.0.0.1:", proxy_->port(),
                     "\"}\n")));
  }
  watch_ =
      std::make_unique<StatusWatch>(options_.run_dir, absl::Milliseconds(25));
  progress_at_ = Clock::Real().Now();
  while (true) {
    if (ShutdownRequested()) return absl::CancelledError("interrupted");
    if (pid_ == 0) COX_RETURN_IF_ERROR(Launch());
    const ChildExit exit = PollChild(pid_);
    if (exit.exited) {
      COX_ASSIGN_OR_RETURN(const bool done, OnExit(exit));
      if (done) break;
      continue;
    }
    EndPauses(/*all=*/false);
    Observe();
    PollArmed();
    NextFault();
    COX_RETURN_IF_ERROR(CheckProgress());
    absl::SleepFor(kPoll);
  }
  // Not delivered: the next run gets it.
  if (armed_until_.has_value()) {
    if (Fs::Real().Exists(ArmPath())) {
      (void)Fs::Real().RemoveAll(ArmPath());
      NobodyCameBy();
    } else {
      Record(faults_->front(), VictimName(faults_->front()));
      faults_->pop_front();
    }
  }
  watch_ = nullptr;
  return absl::OkStatus();
}

std::string ChaosRun::VictimName(const Fault& fault) const {
  return fault.role == "all" || fault.role == "coordinator"
             ? fault.role
             : absl::StrCat(fault.role, "-", fault.index);
}

void ChaosRun::NextFault() {
  if (faults_->empty() || armed_until_.has_value() || pid_ == 0) return;
  const MonoTime now = Clock::Real().Now();
  const StatusWatch::View view = watch_->Now();
  const Fault& fault = faults_->front();
  if (!scheduled_) {
    // Before the first step nothing durable can be lost.
    if (!view.answered || view.answered_at < launched_) return;
    const bool first = delivered_.empty();
    if ((first || fault.after_recovery) &&
        (view.progress() < 1 || !watched_.empty())) {
      return;
    }
    scheduled_ = true;
    due_ = now + fault.delay;
  }
  if (now >= due_) Deliver(fault);
}

void ChaosRun::Deliver(const Fault& fault) {
  const std::string name = VictimName(fault);
  if (!fault.failpoint.empty()) {
    const char* action = fault.kind == FaultKind::kCorrupt  ? "flip"
                         : fault.kind == FaultKind::kEnospc ? "enospc"
                                                            : "kill";
    const std::string line =
        absl::StrCat(fault.failpoint, ":", fault.hit, ":", action, "#", starts_,
                     ".", ++arm_count_, "\n");
    // Renamed into place: nobody sees half of it.
    if (WriteFileDurably(Fs::Real(), ArmPath(), line).ok()) {
      armed_until_ = Clock::Real().Now() + kArmedFor;
    }
    return;
  }
  if (Strike(fault, name)) {
    Record(fault, name);
    faults_->pop_front();
    scheduled_ = false;
  }
}

void ChaosRun::PollArmed() {
  if (!armed_until_.has_value()) return;
  if (!Fs::Real().Exists(ArmPath())) {
    armed_until_.reset();
    Record(faults_->front(), VictimName(faults_->front()));
    faults_->pop_front();
    scheduled_ = false;
    return;
  }
  if (Clock::Real().Now() < *armed_until_) return;
  if (::unlink(ArmPath().c_str()) != 0) return;  // taken this moment
  armed_until_.reset();
  NobodyCameBy();
  scheduled_ = false;
}

// An instant will do instead of a place, or another fault of the kind.
void ChaosRun::NobodyCameBy() {
  Fault& fault = faults_->front();
  if (fault.kind == FaultKind::kKill) {
    fault.failpoint.clear();
  } else if (fault.hit > 1) {
    fault.hit = 1;
  } else {
    faults_->push_back(fault);
    faults_->pop_front();
  }
}

bool ChaosRun::Strike(const Fault& fault, const std::string& name) {
  if (fault.kind == FaultKind::kSlow || fault.kind == FaultKind::kCut) {
    proxy_->SetMode(fault.kind == FaultKind::kSlow ? ChaosProxy::Mode::kSlow
                    : fault.index % 2 == 0         ? ChaosProxy::Mode::kCutUp
                                           : ChaosProxy::Mode::kCutDown);
    proxy_until_ = Clock::Real().Now() + fault.length;
    return true;
  }
  if (fault.role == "all") {
    KillEverything();
    return true;
  }
  const auto processes = RoleProcesses(pid_);
  const auto victim = processes.find(name);
  if (victim == processes.end()) return false;
  if (fault.kind == FaultKind::kStop) {
    kill(victim->second, SIGSTOP);
    paused_.push_back({victim->second, Clock::Real().Now() + fault.length});
    return true;
  }
  return kill(victim->second, SIGKILL) == 0;
}

void ChaosRun::KillEverything() {
  killed_by_us_ = true;
  // The supervisor first, so that it starts nothing again.
  const auto processes = RoleProcesses(pid_);
  kill(pid_, SIGKILL);
  for (const auto& [name, pid] : processes) kill(pid, SIGKILL);
  EndPauses(/*all=*/true);
  (void)WaitChild(pid_, absl::Seconds(10));
  pid_ = 0;
  // A kernel that is busy takes its time to end them; their locks go last.
  for (int i = 0; i < 500; ++i) {
    bool alive = false;
    for (const auto& [name, pid] : processes) {
      alive = alive || kill(pid, 0) == 0;
    }
    if (!alive) break;
    absl::SleepFor(absl::Milliseconds(10));
  }
}

void ChaosRun::EndPauses(bool all) {
  const MonoTime now = Clock::Real().Now();
  std::erase_if(paused_, [&](const Paused& paused) {
    if (!all && now < paused.until) return false;
    kill(paused.pid, SIGCONT);
    return true;
  });
  if (proxy_ != nullptr && proxy_until_.has_value() &&
      (all || now >= *proxy_until_)) {
    proxy_->SetMode(ChaosProxy::Mode::kPass);
    proxy_until_.reset();
  }
}

void ChaosRun::Record(const Fault& fault, const std::string& victim) {
  const StatusWatch::View view = watch_->Now();
  // A second blow hides how long the first one would have taken.
  watched_.clear();
  DeliveredFault delivered;
  delivered.fault = fault;
  delivered.victim = victim;
  delivered.run = BaseName(options_.run_dir);
  delivered.wall = absl::FormatTime(
      "%Y-%m-%dT%H:%M:%E3SZ", Clock::Real().WallNow(), absl::UTCTimeZone());
  Watched watched;
  watched.index = delivered_.size();
  watched.at = Clock::Real().Now();
  watched.epoch = view.status.epoch();
  watched.generation = view.status.generation();
  watched.progress = view.progress();
  for (const auto& session : view.status.sessions()) {
    if (session.alive() && session.role() == fault.role &&
        (session.name() == victim || !fault.failpoint.empty())) {
      watched.suspects.emplace_back(session.name(), session.address());
    }
  }
  watched_.push_back(std::move(watched));
  delivered_.push_back(std::move(delivered));
}

void ChaosRun::Observe() {
  const StatusWatch::View view = watch_->Now();
  if (!view.answered) return;
  std::erase_if(watched_, [&](const Watched& w) {
    // An answer that was on its way says nothing about afterwards.
    if (view.asked < w.at) return false;
    DeliveredFault& d = delivered_[w.index];
    const absl::Duration since = view.answered_at - w.at;
    const auto set = [&since](std::optional<absl::Duration>& value, bool now) {
      if (now && !value.has_value()) value = since;
    };
    const bool epoch = view.status.epoch() > w.epoch;
    const bool generation = view.status.generation() > w.generation;
    const bool commit = view.progress() > w.progress;
    set(d.commit, commit);
    if (d.fault.role == "actor" || d.fault.role == "reward") {
      ObserveSession(w, view, since);
    } else if (d.fault.role == "coordinator") {
      set(d.noticed, epoch);
      set(d.serving, epoch);
    } else if (d.fault.role == "learner") {
      set(d.noticed, generation);
      set(d.serving, generation && commit);
    } else {
      set(d.noticed, epoch);
      set(d.serving, epoch && commit);
    }
    if (commit && since > kForget) return true;
    return d.fault.kind == FaultKind::kKill
               ? d.serving.has_value() && d.commit.has_value()
               : d.commit.has_value() && paused_.empty() &&
                     !proxy_until_.has_value();
  });
}

void ChaosRun::ObserveSession(const Watched& watched,
                              const StatusWatch::View& view,
                              absl::Duration since) {
  DeliveredFault& d = delivered_[watched.index];
  const auto alive = [&view](const std::string& address) {
    for (const auto& session : view.status.sessions()) {
      if (session.alive() && session.address() == address) return true;
    }
    return false;
  };
  for (const auto& [name, address] : watched.suspects) {
    if (alive(address)) continue;
    d.victim = name;
    if (!d.noticed.has_value()) d.noticed = since;
    if (!d.serving.has_value() && !view.AddressOf(name).empty()) {
      d.serving = since;
    }
  }
  // It was killed before it had registered.
  if (watched.suspects.empty() && !view.AddressOf(d.victim).empty() &&
      !d.serving.has_value()) {
    d.serving = since;
  }
}

absl::Status ChaosRun::CheckProgress() {
  const StatusWatch::View view = watch_->Now();
  const MonoTime now = Clock::Real().Now();
  if (view.answered && view.progress() != last_progress_) {
    last_progress_ = view.progress();
    progress_at_ = now;
  }
  if (now - progress_at_ < options_.patience) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(
      "no step was committed for ", absl::FormatDuration(options_.patience),
      "; waiting:\n", watch_->Stuck()));
}

}  // namespace cox
