#include "tests/sim/worker_process.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/hash.h"

namespace cox::sim {
namespace {

constexpr Ns kHeartbeat = 2 * kSecond;

}  // namespace

WorkerProcess::WorkerProcess(World& world, Role its_role, std::string its_name,
                             int32_t rank)
    : Process(world, its_role, std::move(its_name)), rank_(rank) {}

CoreCaller WorkerProcess::Caller() const {
  const char* role_name = role == Role::kActor    ? "actor"
                          : role == Role::kReward ? "reward"
                                                  : "learner";
  return {session_, role_name, name, epoch_, generation_};
}

void WorkerProcess::OnKilled() {
  waiting_.clear();
  registering_ = false;
  held_.clear();
}

void WorkerProcess::Connect(std::function<void()> then) {
  session_ = world_.NewSession();
  epoch_ = 0;
  generation_ = 0;
  registering_ = false;
  Register([this, then = std::move(then)] {
    StartHeartbeat();
    then();
  });
}

void WorkerProcess::Register(std::function<void()> then) {
  waiting_.push_back(std::move(then));
  if (registering_) {
    return;
  }
  registering_ = true;
  Call<int64_t>(
      0,
      [this](CoordinatorProcess& coordinator, const CoreCaller& caller,
             ReplyTo<int64_t> reply) {
        RegisterEvent event;
        event.caller = caller;
        event.address = name;
        event.rank = rank_;
        coordinator.Unary<int64_t>(
            [event](CoordinatorCore& core) -> absl::StatusOr<int64_t> {
              COX_RETURN_IF_ERROR(core.Register(event));
              return core.epoch().value;
            },
            std::move(reply));
      },
      [this](const absl::StatusOr<int64_t>& epoch) {
        registering_ = false;
        if (!epoch.ok()) {
          return OnFatal(epoch.status());
        }
        epoch_ = *epoch;
        for (const auto& next : std::exchange(waiting_, {})) {
          next();
        }
      });
}

void WorkerProcess::OnFatal(const absl::Status& status) {
  // A liar that an audit found is shut out.
  const bool shut_out =
      absl::IsPermissionDenied(status) && world_.audit && role == Role::kActor;
  if (absl::IsDataLoss(status) || absl::IsInvalidArgument(status) ||
      (absl::IsPermissionDenied(status) && !shut_out)) {
    world_.checker.Violation(absl::StrCat(name, " got ", status.ToString()));
  }
  Kill("a call failed");
}

void WorkerProcess::StartHeartbeat() {
  After(kHeartbeat, [this] { Beat(); });
}

void WorkerProcess::Beat() {
  // One attempt: the next beat is the retry.
  CoordinatorProcess& coordinator = world_.CoordinatorFor(*this);
  HeartbeatEvent event;
  event.caller = Caller();
  event.held.assign(held_.begin(), held_.end());
  world_.Send(
      *this, coordinator, -1, [this, event, &coordinator, of = incarnation] {
        coordinator.Unary<bool>(
            [event](CoordinatorCore& core) { return core.Heartbeat(event); },
            [this, &coordinator, of](const absl::StatusOr<bool>& stop) {
              const ErrorReason reason = ReasonOf(stop.status());
              if (reason == ErrorReason::kUnknownSession ||
                  reason == ErrorReason::kStaleEpoch) {
                world_.Send(coordinator, *this, of, [this] {
                  if (!registering_) {
                    Register([] {});
                  }
                });
              }
            });
      });
  StartHeartbeat();
}

void WorkerProcess::Report() {
  const std::vector<std::string> held(held_.begin(), held_.end());
  Call<bool>(
      0,
      [this, held](CoordinatorProcess& coordinator, const CoreCaller& caller,
                   ReplyTo<bool> reply) {
        coordinator.Unary<bool>(
            [caller, held,
             this](CoordinatorCore& core) -> absl::StatusOr<bool> {
              COX_RETURN_IF_ERROR(core.ReportHeld(caller, held, name));
              return true;
            },
            std::move(reply));
      },
      [](const absl::StatusOr<bool>&) {});
}

void WorkerProcess::AwaitAssignment(
    Ns poll, int64_t serial, std::function<void(const AssignmentData&)> then) {
  Call<AssignmentData>(
      poll,
      [poll, serial](CoordinatorProcess& coordinator, const CoreCaller& caller,
                     ReplyTo<AssignmentData> reply) {
        coordinator.Poll<AssignmentData>(
            poll, AssignmentData(),
            [caller, serial](CoordinatorCore& core)
                -> absl::StatusOr<std::optional<AssignmentData>> {
              COX_ASSIGN_OR_RETURN(AssignmentData a,
                                   core.GetAssignment(caller));
              return a.serial != serial
                         ? std::optional<AssignmentData>(std::move(a))
                         : std::nullopt;
            },
            std::move(reply));
      },
      [this, poll, serial, then](const absl::StatusOr<AssignmentData>& a) {
        if (!a.ok()) {
          return OnFatal(a.status());
        }
        // The poll's time is over.
        if (a->serial == 0) {
          return AwaitAssignment(poll, serial, then);
        }
        then(*a);
      });
}

void WorkerProcess::Fetch(const SourceData& source,
                          std::function<void(bool)> done) {
  // Verified against the hash at the receiver, so it is all or nothing.
  const std::string hash = source.version.content_hash;
  for (const std::string& address : source.addresses) {
    auto* peer = static_cast<WorkerProcess*>(world_.FindAddress(address));
    if (peer != nullptr && peer->Serves(hash)) {
      After(world_.Jitter(5 * kMs, 40 * kMs), [this, hash, done] {
        held_.insert(hash);
        done(true);
      });
      return;
    }
  }
  After(100 * kMs, [done] { done(false); });
}

// --- Actor

ActorProcess::ActorProcess(World& world, std::string its_name)
    : WorkerProcess(world, Role::kActor, std::move(its_name), 0) {}

void ActorProcess::OnStart() {
  core_.emplace(ActorCoreOptions{});
  busy_ = false;
  held_hash_.clear();
  work_.clear();
  Connect([this] {
    AssignmentLoop(0);
    RenewLoop();
  });
}

void ActorProcess::OnKilled() {
  WorkerProcess::OnKilled();
  core_.reset();
  work_.clear();
}

void ActorProcess::AssignmentLoop(int64_t serial) {
  AwaitAssignment(5 * kSecond, serial, [this](const AssignmentData& a) {
    core_->SetServing(a.kind == AssignmentKind::kServe);
    AssignmentLoop(a.serial);
    Step();
  });
}

void ActorProcess::Step() {
  if (busy_) {
    return;
  }
  const ActorAction action = core_->Next(world_.loop.mono(), held_hash_);
  switch (action.kind) {
    case ActorAction::Kind::kLease:
      return Lease(action.max_units);
    case ActorAction::Kind::kSwap:
      return Swap(action.lease);
    case ActorAction::Kind::kGenerate:
      return Generate(action.lease);
    case ActorAction::Kind::kWait:
      if (action.wake.has_value()) {
        After(std::max<Ns>(action.wake->ns - world_.loop.now(), kMs),
              [this] { Step(); });
      }
  }
}

void ActorProcess::Lease(int max_units) {
  busy_ = true;
  const MonoTime sent = world_.loop.mono();
  using Grants = std::vector<LeaseGrant>;
  Call<Grants>(
      3 * kSecond,
      [max_units](CoordinatorProcess& coordinator, const CoreCaller& caller,
                  ReplyTo<Grants> reply) {
        coordinator.Poll<Grants>(
            3 * kSecond, Grants(),
            [caller, max_units](CoordinatorCore& core)
                -> absl::StatusOr<std::optional<Grants>> {
              COX_ASSIGN_OR_RETURN(Grants grants,
                                   core.Lease(caller, max_units));
              return grants.empty() ? std::nullopt
                                    : std::optional<Grants>(std::move(grants));
            },
            std::move(reply));
      },
      [this, sent](const absl::StatusOr<Grants>& grants) {
        busy_ = false;
        if (!grants.ok()) {
          return OnFatal(grants.status());
        }
        std::vector<GrantedUnit> granted;
        for (const LeaseGrant& grant : *grants) {
          granted.push_back(
              {grant.unit, grant.lease, grant.policy.version.content_hash});
        }
        const std::vector<LocalLease> leases = core_->OnLeased(sent, granted);
        for (size_t i = 0; i < leases.size(); ++i) {
          work_[leases[i]] = {leases[i], (*grants)[i], ""};
        }
        RenewLoop();
        Step();
      });
}

void ActorProcess::Swap(LocalLease lease) {
  busy_ = true;
  const Work work = work_[lease];
  Fetch(work.grant.policy, [this, work](bool loaded) {
    busy_ = false;
    if (!loaded) {
      return GiveBack(work);
    }
    const std::string& hash = work.grant.policy.version.content_hash;
    const std::string before = std::exchange(held_hash_, hash);
    std::erase_if(
        held_, [&](const std::string& h) { return h != hash && h != before; });
    Report();
    Step();
  });
}

void ActorProcess::Generate(LocalLease lease) {
  busy_ = true;
  core_->OnGenerating(lease);
  After(world_.Jitter(60 * kMs, 350 * kMs), [this, lease] {
    busy_ = false;
    Work& work = work_[lease];
    if (work.grant.unit == world_.poison) {
      return Kill("a poison unit");
    }
    work.payload =
        UnitPayload(world_.plan, work.grant.unit, held_hash_,
                    world_.rules.seed_by_place ? 0 : work.grant.attempt);
    core_->OnGenerated(lease);
    const Work copy = work;
    Score(copy, 0);
    Step();
  });
}

void ActorProcess::Score(const Work& work, int attempt) {
  if (!core_->Holds(work.lease, world_.loop.mono())) {
    return Finished(work.lease);
  }
  const ScorePlanData& plan = work.grant.score;
  if (plan.reward_addresses.empty() && plan.reference_hash.empty()) {
    return Submit(work);
  }
  auto* replica = plan.reward_addresses.empty()
                      ? nullptr
                      : static_cast<WorkerProcess*>(
                            world_.FindAddress(plan.reward_addresses.front()));
  const bool serves =
      replica != nullptr && world_.loop.now() >= replica->stopped_until &&
      (plan.reference_hash.empty() || replica->Serves(plan.reference_hash)) &&
      (plan.reward_hash.empty() || replica->Serves(plan.reward_hash));
  if (serves) {
    After(world_.Jitter(10 * kMs, 30 * kMs), [this, work] { Submit(work); });
  } else if (attempt >= 3) {
    GiveBack(work);
  } else {
    After(200 * kMs, [this, work, attempt] { Score(work, attempt + 1); });
  }
}

void ActorProcess::Submit(const Work& work) {
  if (!core_->Holds(work.lease, world_.loop.mono())) {
    return Finished(work.lease);
  }
  SubmitEvent event;
  event.unit = work.grant.unit;
  event.policy_hash = work.grant.policy.version.content_hash;
  event.version_step = work.grant.policy.version.version.step;
  event.payload_sha256 = Sha256Hex(std::string_view(work.payload));
  if (world_.Lies(*this) && world_.audit) {
    Work lie = work;
    lie.payload += " wrong numbers";
    lie.wrong = true;
    event.payload_sha256 = Sha256Hex(std::string_view(lie.payload));
    return SendSubmission(lie, event, false);
  }
  if (world_.Lies(*this)) {
    // First with weights that it does not have: refused. The true result is
    // handed in as well, and another one after it.
    Work lie = work;
    SubmitEvent wrong = event;
    wrong.policy_hash = Sha256Hex(std::string_view("other weights"));
    lie.payload += " wrong weights";
    wrong.payload_sha256 = Sha256Hex(std::string_view(lie.payload));
    SendSubmission(lie, wrong, true);
  }
  SendSubmission(work, event, false);
}

void ActorProcess::SendSubmission(const Work& work, SubmitEvent event,
                                  bool lie) {
  Call<SubmitResult>(
      0,
      [this, work, event](CoordinatorProcess& coordinator,
                          const CoreCaller& caller,
                          ReplyTo<SubmitResult> reply) {
        SubmitEvent now = event;
        now.caller = caller;
        coordinator.Submit(
            now, work.payload,
            [this, now, reply = std::move(reply)](
                const absl::StatusOr<SubmitResult>& result) {
              // A result under audit counts only once it is confirmed.
              const bool durable = world_.disk.IsDurable(now.unit);
              if (result.ok() && *result != SubmitResult::kAlreadyConsumed &&
                  (durable || !world_.audit)) {
                world_.checker.OnUnitAck(now.unit, now.payload_sha256, durable);
              }
              reply(result);
            });
      },
      [this, work, event, lie](const absl::StatusOr<SubmitResult>& result) {
        if (lie) {
          return;
        }
        if (result.ok()) {
          if (world_.Lies(*this) && !world_.audit) {
            Work other = work;
            SubmitEvent wrong = event;
            other.payload += " another result";
            wrong.payload_sha256 = Sha256Hex(std::string_view(other.payload));
            SendSubmission(other, wrong, true);
          }
          return Finished(work.lease);
        }
        if (absl::IsFailedPrecondition(result.status())) {
          return GiveBack(work);  // too stale, or the unit is not open
        }
        if (work.wrong) {
          return Kill("it was found lying");
        }
        OnFatal(result.status());
      });
}

void ActorProcess::GiveBack(const Work& work) {
  Call<bool>(
      0,
      [work](CoordinatorProcess& coordinator, const CoreCaller& caller,
             ReplyTo<bool> reply) {
        coordinator.Unary<bool>(
            [caller, unit = work.grant.unit](
                CoordinatorCore& core) -> absl::StatusOr<bool> {
              COX_RETURN_IF_ERROR(core.Return(caller, {unit}));
              return true;
            },
            std::move(reply));
      },
      [](const absl::StatusOr<bool>&) {});
  core_->OnFinished(work.lease);
  work_.erase(work.lease);
  After(200 * kMs, [this] { Step(); });
}

void ActorProcess::Finished(LocalLease lease) {
  core_->OnFinished(lease);
  work_.erase(lease);
  Step();
}

void ActorProcess::RenewLoop() {
  const std::optional<MonoTime> due = core_->NextRenewal();
  if (!due.has_value()) {
    return;
  }
  const int64_t number = ++renewals_;
  After(std::max<Ns>(due->ns - world_.loop.now(), kMs), [this, number] {
    if (number != renewals_) {
      return;
    }
    const MonoTime sent = world_.loop.mono();
    const ActorCore::Renewal renewal = core_->RenewalDue(sent);
    if (renewal.leases.empty()) {
      return RenewLoop();
    }
    Call<std::vector<bool>>(
        0,
        [renewal](CoordinatorProcess& coordinator, const CoreCaller& caller,
                  ReplyTo<std::vector<bool>> reply) {
          coordinator.Unary<std::vector<bool>>(
              [caller, renewal](CoordinatorCore& core) {
                return core.Renew(caller, renewal.units);
              },
              std::move(reply));
        },
        [this, sent, renewal](const absl::StatusOr<std::vector<bool>>& held) {
          if (!held.ok()) {
            return OnFatal(held.status());
          }
          core_->OnRenewed(sent, renewal.leases, *held);
          RenewLoop();
          Step();
        });
  });
}

// --- Reward

RewardProcess::RewardProcess(World& world, std::string its_name)
    : WorkerProcess(world, Role::kReward, std::move(its_name), 0) {}

void RewardProcess::OnStart() {
  Connect([this] { AssignmentLoop(0); });
}

void RewardProcess::AssignmentLoop(int64_t serial) {
  AwaitAssignment(5 * kSecond, serial, [this](const AssignmentData& a) {
    Hold(a.models, a.serial);
  });
}

void RewardProcess::Hold(std::vector<SourceData> models, int64_t serial) {
  while (!models.empty() &&
         held_.contains(models.back().version.content_hash)) {
    models.pop_back();
  }
  if (models.empty()) {
    Report();
    return AssignmentLoop(serial);
  }
  Fetch(models.back(), [this, models, serial](bool loaded) {
    if (loaded) {
      return Hold(models, serial);
    }
    After(300 * kMs, [this] { AssignmentLoop(0); });
  });
}

}  // namespace cox::sim
