#include "coordinator/retention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace cox {
namespace {

void AddReason(std::string& reasons, const std::string& reason) {
  absl::StrAppend(&reasons, reasons.empty() ? "" : ", ", reason);
}

}  // namespace

std::optional<double> MetricOf(const StepRow& step, const std::string& name) {
  for (const auto& [metric, value] : step.metrics) {
    if (metric == name && std::isfinite(value)) {
      return value;
    }
  }
  return std::nullopt;
}

std::vector<std::string> WhyKept(
    const CheckpointRetention& retention,
    const std::vector<CheckpointRow>& rows, int64_t total_steps,
    const std::function<std::optional<double>(int64_t step)>& metric) {
  std::vector<std::string> why(rows.size());
  std::vector<std::pair<double, size_t>> measured;
  const auto last = static_cast<size_t>(std::max(retention.keep_last, 2));
  for (size_t i = 0; i < rows.size(); ++i) {
    if (total_steps > 0 && rows[i].step == total_steps) {
      AddReason(why[i], "end of the stage");
    }
    if (i < last) {
      AddReason(why[i], "last");
    }
    if (const std::optional<double> value = metric(rows[i].step)) {
      measured.emplace_back(retention.best_is_highest ? -*value : *value, i);
    }
  }
  std::sort(measured.begin(), measured.end());
  const auto best = static_cast<size_t>(std::max(retention.keep_best, 0));
  for (size_t i = 0; i < std::min(best, measured.size()); ++i) {
    const auto& [key, row] = measured[i];
    AddReason(why[row], absl::StrCat("best ", retention.best_metric, " = ",
                                     retention.best_is_highest ? -key : key));
  }
  return why;
}

std::vector<int64_t> StepsOf(const std::vector<CheckpointRow>& rows) {
  std::vector<int64_t> steps;
  for (const CheckpointRow& row : rows) {
    steps.push_back(row.step);
  }
  return steps;
}

int64_t RetiredUpTo(const RunPlan& plan, int32_t stage, bool stage_done,
                    const std::vector<int64_t>& checkpoints, int64_t committed,
                    int64_t keep_steps) {
  if (!plan.stage(stage).has_learner_steps()) {
    // Its outputs are made from the payloads before it is done.
    return stage_done ? INT64_MAX : 0;
  }
  if (checkpoints.size() < 2) {
    return 0;
  }
  return std::min(checkpoints[1], committed - std::min(committed, keep_steps));
}

void SegmentBook::Add(const UnitRow& unit, int64_t trained) {
  if (IsRemoved(unit.payload.segment)) {
    return;
  }
  Use& use = segments_[unit.payload.segment];
  use.bytes += unit.payload.length;
  StageUse& stage = use.stages[unit.id.stage];
  stage.open += trained == 0 ? 1 : 0;
  stage.last_step = std::max(stage.last_step, trained);
}

void SegmentBook::Add(const LeftOutRows& rows) {
  for (const auto& [place, payloads] : rows.payloads) {
    const auto& [segment, stage_of] = place;
    if (IsRemoved(segment)) {
      continue;
    }
    Use& use = segments_[segment];
    use.bytes += payloads.bytes;
    StageUse& stage = use.stages[stage_of];
    stage.open += payloads.open;
    stage.last_step = std::max(stage.last_step, payloads.last_step);
  }
}

void SegmentBook::Settle(const UnitRow& unit, int64_t trained) {
  if (auto use = segments_.find(unit.payload.segment); use != segments_.end()) {
    StageUse& stage = use->second.stages[unit.id.stage];
    --stage.open;
    stage.last_step = std::max(stage.last_step, trained);
  }
}

void SegmentBook::Remove(const SegmentRemovedRow& row) {
  segments_.erase(row.segment);
  removed_.insert(row.segment);
}

std::vector<SegmentRemovedRow> SegmentBook::Surplus(
    uint64_t budget, const std::set<int32_t>& needed,
    const std::function<bool(int32_t stage, int64_t step)>& retired) const {
  std::vector<SegmentRemovedRow> surplus;
  uint64_t total = 0;
  for (const auto& [segment, use] : segments_) {
    total += use.bytes;
  }
  for (auto it = segments_.begin();
       it != segments_.end() && std::next(it) != segments_.end() &&
       total > budget;
       ++it) {
    const auto& [segment, use] = *it;
    const bool all = std::all_of(
        use.stages.begin(), use.stages.end(), [&](const auto& entry) {
          const auto& [stage, units] = entry;
          return (units.last_step == 0 || retired(stage, units.last_step)) &&
                 (units.open == 0 || retired(stage, 0));
        });
    if (all && !needed.contains(segment)) {
      surplus.push_back({segment, use.bytes});
      total -= use.bytes;
    }
  }
  return surplus;
}

}  // namespace cox
