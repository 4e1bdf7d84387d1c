#ifndef COX_COORDINATOR_PLAN_RECORD_H_
#define COX_COORDINATOR_PLAN_RECORD_H_

// The plan as the ledger's meta row "plan": whoever checks a run directory
// later needs neither the prompt files nor the configuration's defaults of
// another build.

#include <string>
#include <string_view>

#include "coordinator/plan.h"

namespace cox {

// Deterministic JSON.
std::string PlanRecord(const PlanOptions& options);

// DATA_LOSS: not such a text.
absl::StatusOr<PlanOptions> ParsePlanRecord(std::string_view text);

}  // namespace cox

#endif  // COX_COORDINATOR_PLAN_RECORD_H_
