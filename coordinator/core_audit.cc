// Whom to trust with work, and how many of them there shall be: units that are
// computed twice, units that kill their actors, callers that went away.
//
// A unit under audit has no row until two actors agree on its result: until
// then it is open, like a unit whose actor died, and a restart of the
// coordinator forgets what was handed in. So no result of such a unit is
// trained that was not confirmed, and the ledger needs no correction.

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "coordinator/core.h"
#include "lib/base/rng.h"

namespace cox {
namespace {

// Without anybody who could settle a disagreement for this long, a person has
// to look.
constexpr absl::Duration kUnsettled = absl::Minutes(1);
// Only an actor that has been alone for this long confirms itself: others may
// be starting again, or have not found a restarted coordinator yet.
constexpr absl::Duration kAlone = absl::Seconds(30);
constexpr std::string_view kScale = "scale ";

}  // namespace

bool CoordinatorCore::IsAudited(const UnitId& unit) const {
  if (options_.audit_fraction <= 0 || plan_.IsStreaming(unit.stage)) {
    return false;
  }
  // Of the unit alone, so that every incarnation decides alike.
  CounterRng draw((static_cast<uint64_t>(unit.stage) << 48) ^
                      (static_cast<uint64_t>(unit.step) << 20) ^
                      static_cast<uint64_t>(unit.index),
                  "audit");
  return draw.NextUniform() < options_.audit_fraction;
}

// Somebody alive who has not computed the unit yet.
bool CoordinatorCore::HasOtherActor(
    const std::vector<AuditResult>& results) const {
  return std::any_of(
      sessions_.begin(), sessions_.end(), [&results](const auto& entry) {
        const Session& session = entry.second;
        return session.alive && !session.quarantined &&
               session.who.caller.role == "actor" &&
               std::none_of(results.begin(), results.end(),
                            [&entry](const AuditResult& result) {
                              return result.IsOf(entry.second.who.caller);
                            });
      });
}

absl::StatusOr<SubmitResult> CoordinatorCore::AuditUnit(
    const SubmitEvent& event) {
  const UnitKey key{event.unit.step, event.unit.index};
  std::vector<AuditResult>& results = audits_[key];
  const auto of_session = [&event](const AuditResult& result) {
    return result.IsOf(event.caller);
  };
  if (std::any_of(results.begin(), results.end(), of_session)) {
    return SubmitResult::kDuplicate;  // its reply was lost
  }
  results.push_back({event.caller.name, event});
  for (const AuditResult& one : results) {
    const auto agrees = [&one](const AuditResult& other) {
      return other.event.payload_sha256 == one.event.payload_sha256;
    };
    if (std::count_if(results.begin(), results.end(), agrees) < 2) {
      continue;
    }
    const SubmitEvent accepted = one.event;
    const std::vector<AuditResult> all = std::move(results);
    audits_.erase(key);
    audit_since_.erase(key);
    AcceptUnit(accepted);
    absl::Status verdict;
    for (const AuditResult& other : all) {
      if (other.event.payload_sha256 == accepted.payload_sha256) continue;
      const std::string why = absl::StrCat(
          "unit ", event.unit.ToString(), ": two actors computed ",
          accepted.payload_sha256, ", ", other.name, " ",
          other.event.payload_sha256);
      Quarantine(other.event.caller.session, why);
      if (of_session(other)) verdict = absl::PermissionDeniedError(why);
    }
    if (!verdict.ok()) return verdict;
    return SubmitResult::kAccepted;
  }
  if (results.size() == 1 && !HasOtherActor(results) &&
      now_ - not_alone_ > kAlone) {
    audits_.erase(key);
    AcceptUnit(event);
    return SubmitResult::kAccepted;
  }
  if (results.size() > 1) {
    AddEvent("audit", absl::StrCat("unit ", event.unit.ToString(), ": ",
                                   results.size(),
                                   " actors computed different results"));
  }
  // Open again, for somebody else.
  leases_.erase(key);
  pending_.insert(key);
  Changed();
  return SubmitResult::kAccepted;
}

bool CoordinatorCore::MayCompute(const std::string& session,
                                 UnitKey key) const {
  const auto who = sessions_.find(session);
  if (const auto audit = audits_.find(key);
      audit != audits_.end() && who != sessions_.end()) {
    for (const AuditResult& result : audit->second) {
      if (result.IsOf(who->second.who.caller)) return false;
    }
  }
  // A suspect unit is alone, so that it takes no other one with it.
  const auto suspect = [this](UnitKey unit) {
    const auto deaths = deaths_.find(unit);
    return options_.poison_after > 0 && deaths != deaths_.end() &&
           deaths->second >= options_.poison_after;
  };
  const bool alone = suspect(key);
  return std::none_of(leases_.begin(), leases_.end(),
                      [&](const auto& lease) {
                        return lease.second.session == session &&
                               (alone || suspect(lease.first));
                      });
}

void CoordinatorCore::Quarantine(const std::string& id,
                                 const std::string& why) {
  AddEvent("quarantine", why);
  const auto session = sessions_.find(id);
  if (session == sessions_.end()) return;
  session->second.quarantined = true;
  ReleaseLeases(id);
  SetHeld(id, session->second, {});
  // What it said elsewhere counts no more.
  for (auto& [key, results] : audits_) {
    std::erase_if(results, [&id](const AuditResult& result) {
      return result.event.caller.session == id;
    });
  }
  std::erase_if(audits_, [](const auto& entry) {
    return entry.second.empty();
  });
  Changed();
}

void CoordinatorCore::TickAudits() {
  const auto actors = std::count_if(
      sessions_.begin(), sessions_.end(), [](const auto& entry) {
        const Session& session = entry.second;
        return session.alive && !session.quarantined &&
               session.who.caller.role == "actor";
      });
  if (actors != 1) not_alone_ = now_;
  std::vector<SubmitEvent> accepted;
  for (const auto& [key, results] : audits_) {
    if (HasOtherActor(results)) {
      audit_since_.erase(key);
      continue;
    }
    const MonoTime since = audit_since_.try_emplace(key, now_).first->second;
    if (results.size() == 1) {
      if (now_ - not_alone_ > kAlone) {
        accepted.push_back(results.front().event);
      }
    } else if (now_ - since > kUnsettled) {
      Fail(absl::StrCat("unit ",
                        results.front().event.unit.ToString(),
                        ": actors computed different results, and no other "
                        "actor came to settle it"),
           43);
    }
  }
  for (const SubmitEvent& event : accepted) {
    const UnitKey key{event.unit.step, event.unit.index};
    audits_.erase(key);
    audit_since_.erase(key);
    AcceptUnit(event);
  }
}

void CoordinatorCore::CountDeath(const UnitLease& lease, UnitKey key) {
  const auto session = sessions_.find(lease.session);
  // Leaving in order is no death.
  if (session == sessions_.end() || session->second.alive) return;
  if (++deaths_[key] == options_.poison_after) {
    AddEvent("unit suspect",
             absl::StrCat("unit ",
                          UnitId{current_, key.first, key.second}.ToString(),
                          ": its actors died ", options_.poison_after,
                          " times; now only for an actor without other work"));
  }
}

// The command's text is the record: "scale actor=3".
void CoordinatorCore::Scale(const std::string& role, int32_t replicas) {
  ControlRow row;
  row.number = next_control_++;
  row.command = absl::StrCat(std::string(kScale), role, "=", replicas);
  AddEvent("control", row.command);
  RecoverScale(row);
  Record(std::move(row));
  Changed();
}

void CoordinatorCore::RecoverScale(const ControlRow& row) {
  const size_t equals = row.command.find('=');
  int32_t replicas = 0;
  if (row.command.starts_with(kScale) && equals != std::string::npos &&
      absl::SimpleAtoi(row.command.substr(equals + 1), &replicas)) {
    wanted_[row.command.substr(kScale.size(), equals - kScale.size())] =
        replicas;
  }
}

void CoordinatorCore::CallerGone(const std::string& session) {
  const auto found = sessions_.find(session);
  if (found != sessions_.end() && found->second.alive &&
      !found->second.broken.has_value()) {
    found->second.broken = now_;
  }
}

}  // namespace cox
