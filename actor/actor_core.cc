#include "actor/actor_core.h"

#include <algorithm>

#include "lib/base/status.h"

namespace cox {

std::vector<LocalLease> ActorCore::OnLeased(
    MonoTime sent, const std::vector<GrantedUnit>& units) {
  std::vector<LocalLease> numbers;
  for (const GrantedUnit& granted : units) {
    numbers.push_back(next_);
    leases_[next_++] = {.unit = granted.unit,
                        .policy_hash = granted.policy_hash,
                        .length = granted.lease,
                        .renewed = sent,
                        .phase = Phase::kReady};
  }
  return numbers;
}

void ActorCore::OnRenewed(MonoTime sent, const std::vector<LocalLease>& leases,
                          const std::vector<bool>& held) {
  COX_CHECK(leases.size() == held.size());
  for (size_t i = 0; i < leases.size(); ++i) {
    const auto it = leases_.find(leases[i]);
    if (it == leases_.end()) continue;
    if (held[i]) {
      it->second.renewed = std::max(it->second.renewed, sent);
    } else {
      leases_.erase(it);
    }
  }
}

void ActorCore::OnGenerating(LocalLease lease) {
  const auto it = leases_.find(lease);
  if (it != leases_.end()) it->second.phase = Phase::kGenerating;
}

void ActorCore::OnGenerated(LocalLease lease) {
  const auto it = leases_.find(lease);
  if (it != leases_.end()) it->second.phase = Phase::kScoring;
}

void ActorCore::OnFinished(LocalLease lease) { leases_.erase(lease); }

ActorAction ActorCore::Next(MonoTime now, const std::string& held_hash) {
  DropExpired(now);
  ActorAction action;
  int scoring = 0;
  const Lease* oldest = nullptr;
  for (const auto& [number, lease] : leases_) {
    if (!action.wake.has_value() || lease.expiry() < *action.wake) {
      action.wake = lease.expiry();
    }
    if (lease.phase == Phase::kScoring) ++scoring;
    if (lease.phase != Phase::kReady) continue;
    if (oldest == nullptr || lease.unit < oldest->unit) {
      oldest = &lease;
      action.lease = number;
    }
  }
  if (scoring > options_.max_scoring) return action;
  if (oldest == nullptr) {
    if (!serving_) return action;
    action.kind = ActorAction::Kind::kLease;
    action.max_units = options_.units_per_lease;
  } else if (oldest->policy_hash != held_hash) {
    action.kind = ActorAction::Kind::kSwap;
  } else {
    action.kind = ActorAction::Kind::kGenerate;
  }
  return action;
}

ActorCore::Renewal ActorCore::RenewalDue(MonoTime now) const {
  const bool due =
      std::any_of(leases_.begin(), leases_.end(), [now](const auto& entry) {
        const Lease& lease = entry.second;
        return lease.renewed + lease.length / 3 <= now;
      });
  Renewal renewal;
  if (!due) return renewal;
  for (const auto& [number, lease] : leases_) {
    renewal.leases.push_back(number);
    renewal.units.push_back(lease.unit);
  }
  return renewal;
}

std::optional<MonoTime> ActorCore::NextRenewal() const {
  std::optional<MonoTime> next;
  for (const auto& [number, lease] : leases_) {
    const MonoTime due = lease.renewed + lease.length / 3;
    if (!next.has_value() || due < *next) next = due;
  }
  return next;
}

bool ActorCore::Holds(LocalLease lease, MonoTime now) const {
  const auto it = leases_.find(lease);
  return it != leases_.end() && now < it->second.expiry();
}

std::vector<UnitId> ActorCore::Units() const {
  std::vector<UnitId> units;
  for (const auto& [number, lease] : leases_) units.push_back(lease.unit);
  std::sort(units.begin(), units.end());
  units.erase(std::unique(units.begin(), units.end()), units.end());
  return units;
}

void ActorCore::DropExpired(MonoTime now) {
  std::erase_if(leases_, [now](const auto& entry) {
    return entry.second.expiry() <= now;
  });
}

}  // namespace cox
