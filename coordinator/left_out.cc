#include "coordinator/left_out.h"

#include <algorithm>

namespace cox {

int64_t ForgottenEnd(const std::vector<int64_t>& checkpoints, int64_t committed,
                     int64_t keep_steps) {
  if (checkpoints.size() < 2 || committed < keep_steps) {
    return 0;
  }
  return std::max<int64_t>(
      0, std::min(checkpoints[1] - 1, committed - keep_steps));
}

void RowFilter::AddStep(int32_t stage, int64_t step) {
  int64_t& committed = stages_[stage].committed;
  committed = std::max(committed, step);
}

void RowFilter::AddCheckpoint(int32_t stage, int64_t step) {
  stages_[stage].checkpoints.push_back(step);
}

void RowFilter::AddStage(int32_t stage, bool done) {
  stages_[stage].done = done;
}

void RowFilter::AddEvent(int64_t number) {
  last_event_ = std::max(last_event_, number);
}

void RowFilter::Settle() {
  for (auto& [id, stage] : stages_) {
    std::sort(stage.checkpoints.rbegin(), stage.checkpoints.rend());
    stage.end =
        ForgottenEnd(stage.checkpoints, stage.committed, options_.keep_steps);
    if (stage.end > 0) {
      left_out_.stages[id].up_to_step = stage.end;
    }
  }
}

int64_t RowFilter::EndOf(int32_t stage) const {
  const auto found = stages_.find(stage);
  return found == stages_.end() ? 0 : found->second.end;
}

bool RowFilter::KeepsStep(int32_t stage, int64_t step) const {
  return step > EndOf(stage) || KeepsMetricsOnly(stage, step);
}

bool RowFilter::KeepsMetricsOnly(int32_t stage, int64_t step) const {
  const auto found = stages_.find(stage);
  return found != stages_.end() && step <= found->second.end &&
         std::binary_search(found->second.checkpoints.rbegin(),
                            found->second.checkpoints.rend(), step);
}

bool RowFilter::KeepsVersion(const std::string& model,
                             PolicyVersion version) const {
  return model != "policy" || version.step < 1 ||
         version.step > EndOf(version.stage);
}

bool RowFilter::KeepsEvent(int64_t number) const {
  return number > last_event_ - options_.keep_events;
}

bool RowFilter::Take(const BatchRow& row) {
  Stage& stage = stages_[row.stage];
  stage.streaming = true;
  const bool done = stage.done && options_.leaves_out();
  if (row.step > stage.end && !done) {
    return true;
  }
  for (const auto* units : {&row.units, &row.dropped}) {
    for (const UnitId& unit : *units) {
      stage.step_of.insert_or_assign({unit.step, unit.index}, row.step);
    }
  }
  return false;
}

bool RowFilter::Take(const UnitId& id, const PayloadRef& payload) {
  Stage& stage = stages_[id.stage];
  const bool done = stage.done && options_.leaves_out();
  int64_t trained = id.step;
  if (stage.streaming) {
    const auto step = stage.step_of.find({id.step, id.index});
    trained = step == stage.step_of.end() ? 0 : step->second;
    if (trained == 0 && !done) {
      return true;
    }
  } else if (id.step > stage.end && !done) {
    return true;
  }
  LeftOutRows::Stage& out = left_out_.stages[id.stage];
  ++out.units;
  if (stage.streaming && !done) {
    out.unit_ids.push_back(id);
  }
  LeftOutRows::Payloads& use = left_out_.payloads[{payload.segment, id.stage}];
  use.bytes += payload.length;
  use.end = std::max(use.end, payload.offset + payload.length);
  use.last_step = std::max(use.last_step, trained);
  use.open += trained == 0 ? 1 : 0;
  return false;
}

LedgerState LeaveOut(LedgerState state, const LedgerWindow& options) {
  RowFilter filter(options);
  for (const StepRow& row : state.steps) {
    filter.AddStep(row.stage, row.step);
  }
  for (const CheckpointRow& row : state.checkpoints) {
    filter.AddCheckpoint(row.stage, row.step);
  }
  for (const StageRow& row : state.stages) {
    filter.AddStage(row.stage, row.state == "done");
  }
  for (const EventRow& row : state.events) {
    filter.AddEvent(row.number);
  }
  filter.Settle();
  std::erase_if(state.steps, [&](StepRow& row) {
    if (filter.KeepsMetricsOnly(row.stage, row.step)) {
      row.batch_sha256.clear();
      row.weight_hash.clear();
    }
    return !filter.KeepsStep(row.stage, row.step);
  });
  std::erase_if(state.versions, [&](const VersionRow& row) {
    return !filter.KeepsVersion(row.model, row.version);
  });
  std::erase_if(state.events, [&](const EventRow& row) {
    return !filter.KeepsEvent(row.number);
  });
  std::erase_if(state.batches,
                [&](const BatchRow& row) { return !filter.Take(row); });
  std::erase_if(state.units, [&](const UnitRow& row) {
    return !filter.Take(row.id, row.payload);
  });
  state.left_out = filter.TakeLeftOut();
  return state;
}

}  // namespace cox
