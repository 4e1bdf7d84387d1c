#include "cli/supervisor.h"

#include <algorithm>
#include <csignal>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace cox {
namespace {

// Who lived this long did not die of its start.
constexpr absl::Duration kSettled = absl::Seconds(3);

}  // namespace

RestartPolicy::Decision RestartPolicy::OnExit(const ChildExit& exit,
                                              absl::Duration ran_for,
                                              MonoTime now) {
  Decision decision;
  if (exit.signal == 0 && exit.code == kExitDone) {
    return decision;
  }
  decision.reason = exit.signal != 0
                        ? absl::StrCat("killed by signal ", exit.signal)
                        : absl::StrCat("exit code ", exit.code);
  const bool retryable = exit.signal != 0 || exit.code == kExitRetryable;
  if (!retryable) {
    decision.action = Action::kEndRun;
    // Codes with a meaning pass through; anything else is our own failure,
    // which a restart of the whole run may cure.
    decision.exit_code = exit.code == kExitCheckFailed ||
                                 exit.code == kExitUsage ||
                                 exit.code == kExitNeedsPerson
                             ? exit.code
                             : kExitRetryable;
    return decision;
  }
  while (!restarts_.empty() && now - restarts_.front() > options_.window) {
    restarts_.pop_front();
  }
  if (static_cast<int>(restarts_.size()) >= options_.max_restarts) {
    decision.action = Action::kEndRun;
    decision.exit_code = kExitRetryable;
    absl::StrAppend(&decision.reason, "; ", restarts_.size(),
                    " restarts within ", absl::FormatDuration(options_.window));
    return decision;
  }
  restarts_.push_back(now);
  if (ran_for > kSettled) {
    backoff_.Reset();
  }
  decision.action = Action::kRestart;
  decision.delay = backoff_.Next();
  return decision;
}

Supervisor::Supervisor(std::vector<ChildSpec> children, RestartOptions options,
                       const Clock& clock)
    : options_(options), clock_(clock) {
  for (ChildSpec& spec : children) AddChild(std::move(spec));
}

Supervisor::Child& Supervisor::AddChild(ChildSpec spec) {
  const uint64_t jitter = children_.size() + 1;
  children_.push_back({std::move(spec),
                       RestartPolicy(options_, jitter),
                       0,
                       {},
                       false,
                       false,
                       {}});
  return children_.back();
}

absl::Status Supervisor::Resize(
    const std::string& role, int32_t count,
    const std::function<ChildSpec(int32_t index)>& make) {
  for (int32_t i = 0; i < count; ++i) {
    const std::string name = absl::StrCat(role, "-", i);
    const auto found =
        std::find_if(children_.begin(), children_.end(),
                     [&name](const Child& c) { return c.spec.name == name; });
    const bool fresh = found == children_.end();
    Child& child = fresh ? AddChild(make(i)) : *found;
    // One that still leaves comes back at a later call.
    if (fresh || (child.retiring && child.pid == 0)) {
      child.retiring = false;
      child.finished = false;
      COX_RETURN_IF_ERROR(StartChild(child));
    }
  }
  for (Child& child : children_) {
    int32_t index = -1;
    const bool numbered =
        child.spec.role == role &&
        absl::SimpleAtoi(child.spec.name.substr(role.size() + 1), &index);
    if (numbered && index >= count && !child.retiring) {
      child.retiring = true;
      child.restart_at.reset();
      SignalChild(child.pid, SIGTERM);
    }
  }
  return absl::OkStatus();
}

Supervisor::~Supervisor() { Drain(absl::ZeroDuration()); }

absl::Status Supervisor::StartChild(Child& child) {
  auto pid = SpawnChild(child.spec.options);
  if (!pid.ok()) {
    return Annotate(pid.status(), absl::StrCat("start ", child.spec.name));
  }
  child.pid = *pid;
  child.started = clock_.Now();
  child.restart_at.reset();
  return absl::OkStatus();
}

absl::Status Supervisor::Start(const std::string& name) {
  for (Child& child : children_) {
    if (child.spec.name == name) {
      return StartChild(child);
    }
  }
  return absl::NotFoundError(absl::StrCat("no child named ", name));
}

absl::Status Supervisor::StartAll() {
  for (Child& child : children_) {
    if (child.pid == 0 && !child.finished) {
      COX_RETURN_IF_ERROR(StartChild(child));
    }
  }
  return absl::OkStatus();
}

bool Supervisor::KillHung(const std::string& name, absl::Duration age) {
  for (Child& child : children_) {
    if (child.spec.name == name && child.pid != 0 &&
        clock_.Now() - child.started >= age) {
      SignalChild(child.pid, SIGKILL);
      return true;
    }
  }
  return false;
}

std::optional<int> Supervisor::Reap(Child& child) {
  const ChildExit exit = PollChild(child.pid);
  if (!exit.exited) {
    return std::nullopt;
  }
  child.pid = 0;
  if (child.retiring) {
    child.finished = true;
    return std::nullopt;
  }
  const MonoTime now = clock_.Now();
  const RestartPolicy::Decision decision =
      child.policy.OnExit(exit, now - child.started, now);
  switch (decision.action) {
    case RestartPolicy::Action::kFinished:
      child.finished = true;
      if (child.spec.role == "coordinator") {
        reason_ = "the coordinator finished";
        return kExitDone;
      }
      return std::nullopt;
    case RestartPolicy::Action::kRestart:
      if (exit.signal == 0 && should_restart_ && !should_restart_()) {
        child.finished = true;
        return std::nullopt;
      }
      ++restarts_;
      child.restart_at = now + decision.delay;
      if (on_restart_) {
        on_restart_(child.spec.name, decision.reason);
      }
      return std::nullopt;
    case RestartPolicy::Action::kEndRun:
      reason_ = absl::StrCat(
          child.spec.name, ": ", decision.reason,
          child.spec.options.log_path.empty()
              ? ""
              : absl::StrCat(" (log: ", child.spec.options.log_path, ")"));
      return decision.exit_code;
  }
  return std::nullopt;
}

std::optional<int> Supervisor::Poll() {
  for (Child& child : children_) {
    if (child.pid != 0) {
      if (std::optional<int> code = Reap(child)) {
        return code;
      }
    }
    if (child.restart_at.has_value() && *child.restart_at <= clock_.Now()) {
      if (absl::Status status = StartChild(child); !status.ok()) {
        reason_ = std::string(status.message());
        return kExitRetryable;
      }
    }
  }
  return std::nullopt;
}

void Supervisor::Drain(absl::Duration grace) {
  const auto drain = [this, grace](bool coordinator) {
    for (Child& child : children_) {
      child.restart_at.reset();
      if (child.pid != 0 && (child.spec.role == "coordinator") == coordinator) {
        SignalChild(child.pid, SIGTERM);
      }
    }
    const MonoTime deadline = clock_.Now() + grace;
    for (Child& child : children_) {
      if (child.pid == 0 || (child.spec.role == "coordinator") != coordinator) {
        continue;
      }
      const absl::Duration left =
          std::max(absl::ZeroDuration(), deadline - clock_.Now());
      if (!WaitChild(child.pid, left).exited) {
        SignalChild(child.pid, SIGKILL);
        WaitChild(child.pid, absl::Seconds(5));
      }
      child.pid = 0;
    }
  };
  drain(/*coordinator=*/false);
  drain(/*coordinator=*/true);
}

std::vector<std::pair<std::string, pid_t>> Supervisor::Pids() const {
  std::vector<std::pair<std::string, pid_t>> pids;
  for (const Child& child : children_) {
    pids.emplace_back(child.spec.name, child.pid);
  }
  return pids;
}

}  // namespace cox
