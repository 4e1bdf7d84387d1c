// Whom to trust with work, and how many of them there shall be: units that are
// computed twice, callers that went away.
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
// Of a run with several actors, one that has been alone for this long is
// believed: others may be starting again, or have not found a restarted
// coordinator yet.
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
  std::vector<AuditResult>& results = audit_.open[key];
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
    audit_.open.erase(key);
    audit_.since.erase(key);
    AcceptUnit(accepted);
    absl::Status verdict;
    for (const AuditResult& other : all) {
      if (other.event.payload_sha256 == accepted.payload_sha256) continue;
      const std::string why =
          absl::StrCat("unit ", event.unit.ToString(), ": two actors computed ",
                       accepted.payload_sha256, ", ", other.name, " ",
                       other.event.payload_sha256);
      Quarantine(other.event.caller.session, why);
      if (of_session(other)) verdict = absl::PermissionDeniedError(why);
    }
    if (!verdict.ok()) return verdict;
    return SubmitResult::kAccepted;
  }
  if (results.size() == 1 && !HasOtherActor(results) &&
      (LoneByPlan() || now_ - audit_.not_alone > kAlone)) {
    AcceptUnaudited(event);
    return SubmitResult::kAccepted;
  }
  if (results.size() > 1) {
    AddEvent("audit",
             absl::StrCat("unit ", event.unit.ToString(), ": ", results.size(),
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
  if (const auto audit = audit_.open.find(key);
      audit != audit_.open.end() && who != sessions_.end()) {
    for (const AuditResult& result : audit->second) {
      if (result.IsOf(who->second.who.caller)) return false;
    }
  }
  // A suspect unit is alone, so that it takes no other one with it.
  const auto suspect = [this](UnitKey unit) {
    const auto failures = failing_.counts.find(unit);
    return options_.poison_after > 0 && failures != failing_.counts.end() &&
           failures->second >= options_.poison_after;
  };
  const bool alone = suspect(key);
  return std::none_of(leases_.begin(), leases_.end(), [&](const auto& lease) {
    return lease.second.session == session && (alone || suspect(lease.first));
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
  for (auto& [key, results] : audit_.open) {
    std::erase_if(results, [&id](const AuditResult& result) {
      return result.event.caller.session == id;
    });
  }
  std::erase_if(audit_.open,
                [](const auto& entry) { return entry.second.empty(); });
  Changed();
}

void CoordinatorCore::TickAudits() {
  const auto actors =
      std::count_if(sessions_.begin(), sessions_.end(), [](const auto& entry) {
        const Session& session = entry.second;
        return session.alive && !session.quarantined &&
               session.who.caller.role == "actor";
      });
  if (actors != 1) audit_.not_alone = now_;
  std::vector<SubmitEvent> accepted;
  for (const auto& [key, results] : audit_.open) {
    if (HasOtherActor(results)) {
      audit_.since.erase(key);
      continue;
    }
    const MonoTime since = audit_.since.try_emplace(key, now_).first->second;
    if (results.size() == 1) {
      if (LoneByPlan() || now_ - audit_.not_alone > kAlone) {
        accepted.push_back(results.front().event);
      }
    } else if (now_ - since > kUnsettled) {
      Fail(absl::StrCat("unit ", results.front().event.unit.ToString(),
                        ": actors computed different results, and no other "
                        "actor came to settle it"),
           43);
    }
  }
  for (const SubmitEvent& event : accepted) {
    AcceptUnaudited(event);
  }
}

// A run that is meant to have one actor waits for no second one.
bool CoordinatorCore::LoneByPlan() const {
  const auto wanted = wanted_.find("actor");
  return (wanted == wanted_.end() ? options_.actors : wanted->second) == 1;
}

void CoordinatorCore::AcceptUnaudited(const SubmitEvent& event) {
  const UnitKey key{event.unit.step, event.unit.index};
  audit_.open.erase(key);
  audit_.since.erase(key);
  if (!audit_.told) {
    audit_.told = true;
    AddEvent("audit", absl::StrCat("unit ", event.unit.ToString(),
                                   " and later ones: accepted from the only "
                                   "actor, without a second opinion"));
  }
  AcceptUnit(event);
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
