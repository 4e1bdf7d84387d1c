#ifndef COX_COORDINATOR_RETIREMENT_CHECK_H_
#define COX_COORDINATOR_RETIREMENT_CHECK_H_

// Whether the payloads that a recorded run has deleted were ones that no
// restart needs (docs/durability.md, rule 20).

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "coordinator/ledger_reader.h"

namespace cox {

class RetirementCheck {
 public:
  // `run` must outlive it.
  explicit RetirementCheck(const RecordedRun& run);

  // Why the payload of `unit`, whose segment is deleted, should be there;
  // "" = nobody needs it. Checkpoint rows may be gone by now that were there
  // then, but only where two newer ones are.
  std::string WhyNeeded(const UnitRow& unit) const;

 private:
  const RecordedRun& run_;
  std::map<int32_t, int64_t> up_to_;   // stage -> last step that is retired
  std::set<int32_t> done_;             // stages
  std::map<UnitId, int64_t> trained_;  // streaming: the batches' inverse
};

}  // namespace cox

#endif  // COX_COORDINATOR_RETIREMENT_CHECK_H_
