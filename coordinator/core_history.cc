// What a long run forgets. Memory, and the time of whatever walks over it, must
// not grow with the number of steps; the ledger keeps everything.

#include "coordinator/core.h"
#include "coordinator/left_out.h"

namespace cox {

int64_t CoordinatorCore::ForgottenUpTo(int32_t stage) const {
  const auto found = history_.forgotten.find(stage);
  return found == history_.forgotten.end() ? 0 : found->second;
}

absl::Status CoordinatorCore::CheckRemembered(int32_t stage,
                                              int64_t step) const {
  if (step > ForgottenUpTo(stage)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "stage ", stage, " step ", step, ": two newer checkpoints and ",
      options_.history_steps, " newer steps are there; nobody starts before"));
}

void CoordinatorCore::ForgetHistory() {
  if (done() || !plan_.stage(current_).has_learner_steps()) {
    return;
  }
  // A restart resumes from one of the two newest checkpoints, a unit may be as
  // old as the staleness allows.
  const int64_t end =
      ForgottenEnd(StepsOf(LatestCheckpoints(current_)), committed(),
                   plan_.schedule().StepsKept(options_.history_steps));
  if (end <= ForgottenUpTo(current_)) {
    return;
  }
  int64_t& begin = history_.forgotten[current_];
  for (; begin < end; ++begin) {
    const int64_t step = begin + 1;
    // What the best checkpoint is measured by stays.
    if (checkpoints_.contains({current_, step})) {
      StepRow& row = steps_[current_].at(step);
      // An assignment would keep the memory.
      std::string().swap(row.batch_sha256);
      std::string().swap(row.weight_hash);
    } else {
      steps_[current_].erase(step);
    }
    versions_.erase({"policy", {current_, step}});
    ForgetUnits(step);
  }
}

void CoordinatorCore::ForgetUnits(int64_t step) {
  if (!plan_.stage(current_).has_units()) {
    return;
  }
  if (!plan_.IsStreaming(current_)) {
    const auto first = submitted_.lower_bound({step, 0});
    const auto last = submitted_.lower_bound({step + 1, 0});
    history_.units += std::distance(first, last);
    submitted_.erase(first, last);
    submitted_in_step_.erase(step);
    return;
  }
  const auto batch = batches_.find(step);
  if (batch == batches_.end()) {
    return;
  }
  for (const auto* units : {&batch->second.units, &batch->second.dropped}) {
    for (const UnitId& unit : *units) {
      history_.units +=
          static_cast<int64_t>(submitted_.erase({unit.step, unit.index}));
      if (--submitted_in_step_[unit.step] == 0) {
        submitted_in_step_.erase(unit.step);
      }
    }
  }
  batches_.erase(batch);
}

bool CoordinatorCore::IsForgotten(UnitKey key) const {
  if (!plan_.IsStreaming(current_)) {
    return key.first <= ForgottenUpTo(current_);
  }
  // Issued, and yet nowhere.
  const int64_t width = plan_.stage(current_).units_per_step();
  return history_.units > 0 &&
         (key.first - 1) * width + key.second < planned_units_ &&
         !pending_.contains(key) && !leases_.contains(key) &&
         !failing_.giving_up.contains(key) && !submitted_.contains(key);
}

}  // namespace cox
