// Units that cannot be computed: their actors die of them, or the result
// cannot be made or is refused. After audit.give_up_after failures such a unit
// is recorded as failed, with a payload that holds its prompts and no answer.
// It is a result like any other from then on: the record determines what is
// trained, also after a restart.

#include <utility>

#include "coordinator/core.h"

namespace cox {
namespace {

// So many units given up without one that was computed in between are not the
// units' fault.
constexpr int32_t kMaxInARow = 4;

std::string Times(int32_t n) {
  return n == 1 ? "once" : absl::StrCat(n, " times");
}

}  // namespace

void CoordinatorCore::CountFailure(UnitKey key, const std::string& what) {
  const int32_t failures = ++failing_.counts[key];
  const std::string unit = UnitId{current_, key.first, key.second}.ToString();
  if (failures == options_.poison_after) {
    AddEvent("unit suspect",
             absl::StrCat("unit ", unit, ": ", what, ", ", Times(failures),
                          "; now only for an actor without other work"));
  }
  if (options_.give_up_after <= 0 || failures < options_.give_up_after ||
      !pending_.contains(key)) {
    return;
  }
  const VersionRow* version = nullptr;
  if (!plan_.IsStreaming(current_)) {
    version = FindVersion("policy", plan_.VersionFor(current_, key.first));
  } else {
    for (int64_t step = committed(); version == nullptr && step >= 0; --step) {
      version = FindVersion("policy", {current_, step});
    }
  }
  if (version == nullptr) {
    return;  // nobody can have computed it
  }
  if (++failing_.in_a_row > kMaxInARow) {
    Fail(absl::StrCat("unit ", unit, ": ", what, ", ", Times(failures),
                      ", as the ", kMaxInARow,
                      " units given up before it: not the units are at fault"),
         43);
    return;
  }
  pending_.erase(key);
  Effect effect;
  effect.kind = Effect::Kind::kUnitGivenUp;
  effect.stage = current_;
  effect.text = absl::StrCat(what, ", ", Times(failures));
  effect.submit.unit = {current_, key.first, key.second};
  effect.submit.policy_hash = version->content_hash;
  effect.submit.version_step = version->version.step;
  failing_.giving_up.insert(key);
  effects_.push_back(std::move(effect));
  Changed();
}

void CoordinatorCore::RecordFailed(const SubmitEvent& placeholder,
                                   const std::string& why) {
  const UnitKey key{placeholder.unit.step, placeholder.unit.index};
  if (placeholder.unit.stage != current_ ||
      failing_.giving_up.erase(key) == 0) {
    return;
  }
  audit_.open.erase(key);
  audit_.since.erase(key);
  UnitFailedRow row{placeholder.unit, why};
  failed_[row.id] = row;
  Record(row);
  AddEvent("unit given up",
           absl::StrCat("unit ", row.id.ToString(), ": ", why));
  const int32_t in_a_row = failing_.in_a_row;
  AcceptUnit(placeholder);
  failing_.in_a_row = in_a_row;
}

absl::Status CoordinatorCore::ReturnFailed(const CoreCaller& caller,
                                           const std::vector<UnitId>& units,
                                           const std::string& why) {
  COX_ASSIGN_OR_RETURN(const Session* session, Find(caller, "actor"));
  for (const UnitId& unit : units) {
    const UnitKey key{unit.step, unit.index};
    auto lease = leases_.find(key);
    if (unit.stage == current_ && lease != leases_.end() &&
        lease->second.session == caller.session) {
      AddEvent("unit failed",
               absl::StrCat("unit ", unit.ToString(), ": ",
                            session->who.caller.name, ": ", why));
      pending_.insert(key);
      leases_.erase(lease);
      CountFailure(key, "no result could be made");
      Changed();
    }
  }
  return absl::OkStatus();
}

void CoordinatorCore::CountDeath(const UnitLease& lease, UnitKey key) {
  const auto session = sessions_.find(lease.session);
  // Leaving in order is no death.
  if (session != sessions_.end() && !session->second.alive) {
    CountFailure(key, "its actors died");
  }
}

}  // namespace cox
