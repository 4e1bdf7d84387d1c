#include "coordinator/retirement_check.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/retention.h"

namespace cox {

RetirementCheck::RetirementCheck(const RecordedRun& run) : run_(run) {
  for (const StageRow& row : run.state().stages) {
    if (row.state == "done") {
      done_.insert(row.stage);
    }
  }
  for (const BatchRow& batch : run.state().batches) {
    for (const auto* units : {&batch.units, &batch.dropped}) {
      for (const UnitId& id : *units) {
        trained_[id] = batch.step;
      }
    }
  }
  for (int32_t stage = 0; stage < run.plan().num_stages(); ++stage) {
    std::vector<int64_t> checkpoints;  // newest first
    for (const CheckpointRow& row : run.state().checkpoints) {
      if (row.stage == stage) {
        checkpoints.insert(checkpoints.begin(), row.step);
      }
    }
    up_to_[stage] = RetiredUpTo(run.plan(), stage, done_.contains(stage),
                                checkpoints, INT64_MAX, /*keep_steps=*/0);
  }
}

std::string RetirementCheck::WhyNeeded(const UnitRow& unit) const {
  const int32_t stage = unit.id.stage;
  const auto up_to = up_to_.find(stage);
  if (up_to == up_to_.end()) {
    return "";  // not in the plan: another invariant
  }
  int64_t step = unit.id.step;
  if (run_.plan().IsStreaming(stage)) {
    const auto trained = trained_.find(unit.id);
    step = trained == trained_.end() ? 0 : trained->second;
  }
  // Step 0: in no batch, and needed as long as batches are made.
  if (step == 0 ? done_.contains(stage) : step <= up_to->second) {
    return "";
  }
  return absl::StrCat("segment ", unit.payload.segment,
                      " was deleted, a restart may need it (retired up to "
                      "step ",
                      up_to->second, ")");
}

}  // namespace cox
