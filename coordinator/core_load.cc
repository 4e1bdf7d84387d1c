// What the autoscaler sees of the core.

#include <algorithm>

#include "coordinator/core.h"

namespace cox {

LoadView CoordinatorCore::Load() const {
  LoadView load;
  if (done() || draining_ || paused_ || !failure_.empty()) return load;
  const StagePlan& stage = plan_.stage(current_);
  load.units_per_step = stage.has_units() ? stage.units_per_step() : 0;
  load.open_units = static_cast<int64_t>(pending_.size() + leases_.size());
  // Streaming: a unit's own step is the round that issued it, so what counts
  // is whether a committed batch has it.
  if (plan_.IsStreaming(current_)) {
    load.ready_units = static_cast<int64_t>(queue_.size());
    for (auto it = batches_.upper_bound(committed()); it != batches_.end();
         ++it) {
      load.ready_units += static_cast<int64_t>(it->second.units.size());
    }
  } else {
    // Asked for at every tick: a stage may have a million rows.
    const int64_t first =
        stage.has_learner_steps() ? committed() + 1 : int64_t{0};
    for (auto it = submitted_in_step_.lower_bound(first);
         it != submitted_in_step_.end(); ++it) {
      load.ready_units += it->second;
    }
  }
  // Versions that generation may run ahead of training.
  int64_t ahead = 0;
  if (stage.has_learner_steps()) {
    const SchedulePlan& schedule = plan_.schedule();
    ahead = schedule.mode == ScheduleMode::kSync       ? 0
            : schedule.mode == ScheduleMode::kFixedLag ? schedule.lag
                                                       : schedule.eta;
  }
  load.overlapped = ahead > 0;
  load.max_in_flight = load.units_per_step * (ahead + 1);
  const int64_t planned = stage.total_steps * load.units_per_step;
  const int64_t finished =
      stage.has_learner_steps() ? committed() * load.units_per_step : 0;
  // The last units of the stage are in: nothing is left to generate.
  load.needs_actors =
      stage.has_units() && finished + load.ready_units < planned;
  for (const auto& [id, session] : sessions_) {
    load.live_actors +=
        session.alive && session.who.caller.role == "actor" ? 1 : 0;
  }
  if (!unit_times_.empty()) {
    std::vector<absl::Duration> times = unit_times_;
    const auto middle =
        times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    load.unit_s = absl::ToDoubleSeconds(*middle);
  }
  const std::map<int64_t, StepRow>& steps = Steps(current_);
  if (!steps.empty()) {
    double step_s = 0;
    double wait_s = 0;
    for (const auto& [name, value] : steps.rbegin()->second.metrics) {
      if (name == "timing_s/step") step_s = value;
      if (name == "timing_s/wait_batch") wait_s = value;
    }
    load.learner_s = std::max(0.0, step_s - wait_s);
  }
  return load;
}

std::map<std::string, int64_t> CoordinatorCore::OpenUnitsOfActors() const {
  std::map<std::string, int64_t> units;
  for (const auto& [id, session] : sessions_) {
    if (session.alive && session.who.caller.role == "actor") {
      units[session.who.caller.name] += 0;
    }
  }
  for (const auto& [key, lease] : leases_) {
    const auto session = sessions_.find(lease.session);
    if (session == sessions_.end()) continue;
    const auto actor = units.find(session->second.who.caller.name);
    if (actor != units.end()) ++actor->second;
  }
  return units;
}

}  // namespace cox
