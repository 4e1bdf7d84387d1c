#ifndef COX_COORDINATOR_CORE_PARTS_H_
#define COX_COORDINATOR_CORE_PARTS_H_

// What CoordinatorCore keeps in memory of processes and their work. Not for
// others.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/core_types.h"
#include "lib/base/clock.h"

namespace cox {

struct CoreSession {
  RegisterEvent who;
  MonoTime last_contact;
  bool alive = true;
  std::set<std::string> held;
  std::string state;
  int64_t state_ms = 0;
  std::string waiting_for;
  uint64_t rss_bytes = 0;
  std::optional<MonoTime> broken;  // since when its connection is
  bool quarantined = false;
  int64_t number = 0;  // of its registration
};

struct CoreLease {
  std::string session;
  MonoTime granted;
  MonoTime expires;
};

// A learner rank that is in the group, or waits for it to form.
struct CoreMember {
  std::string session;
  std::string rendezvous;
};

// One execution of a unit under audit.
struct CoreAuditResult {
  std::string name;  // of the actor
  SubmitEvent event;
  // A restarted process is no second opinion: its host may be the fault.
  bool IsOf(const CoreCaller& caller) const {
    return event.caller.session == caller.session ||
           (!name.empty() && name == caller.name);
  }
};

using CoreUnitKey = std::pair<int64_t, int32_t>;  // step, index

// Units that two actors compute (core_audit.cc).
struct CoreAudits {
  std::map<CoreUnitKey, std::vector<CoreAuditResult>> open;  // not decided yet
  MonoTime not_alone;  // when there was last not exactly one actor
  std::map<CoreUnitKey, MonoTime> since;  // nobody else can compute it
  bool told = false;                      // that units count unaudited
};

// Units that nobody can compute (core_failed_units.cc).
struct CoreFailures {
  std::map<CoreUnitKey, int32_t> counts;
  // Neither pending nor submitted, within one turn.
  std::set<CoreUnitKey> giving_up;
  int32_t in_a_row = 0;  // given up without a result between them
};

// What memory does not hold any more (core_history.cc).
struct CoreHistory {
  // By stage: committed steps up to this one have no units, and a row, of
  // metrics, only where a checkpoint is.
  std::map<int32_t, int64_t> forgotten;
  int64_t units = 0;  // of the current stage, once submitted
};

}  // namespace cox

#endif  // COX_COORDINATOR_CORE_PARTS_H_
