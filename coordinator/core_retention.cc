// What may be deleted (docs/durability.md, rule 20). The row comes first: a
// folder or a file that is still there without one is an ordinary leftover,
// and whoever starts next deletes it.

#include <utility>

#include "coordinator/core.h"

namespace cox {

std::vector<std::string> CoordinatorCore::DropCheckpoints(int32_t stage) {
  const std::vector<CheckpointRow> rows = LatestCheckpoints(stage);
  const std::map<int64_t, StepRow>& steps = Steps(stage);
  std::vector<std::string> why = WhyKept(
      options_.checkpoints, rows, plan_.stage(stage).total_steps,
      [&](int64_t step) {
        const auto row = steps.find(step);
        return row == steps.end()
                   ? std::nullopt
                   : MetricOf(row->second, options_.checkpoints.best_metric);
      });
  if (!options_.rules.keep_two_checkpoints) {
    why.assign(rows.size(), "");
  }
  std::vector<std::string> removed;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (why[i].empty()) {
      removed.push_back(rows[i].directory);
      checkpoints_.erase({rows[i].stage, rows[i].step});
      Record(CheckpointRemovedRow{rows[i].stage, rows[i].step});
    }
  }
  return removed;
}

bool CoordinatorCore::IsRetired(int32_t stage, int64_t step) const {
  const bool stage_done = stage < current_;
  if (step == 0) {
    return stage_done;  // in no batch, and no batch is frozen any more
  }
  std::vector<int64_t> checkpoints = StepsOf(LatestCheckpoints(stage));
  if (!options_.rules.keep_needed_payloads) {
    checkpoints.assign(2, INT64_MAX);
  }
  return step <= RetiredUpTo(plan_, stage, stage_done, checkpoints,
                             LastStep(stage), options_.payloads.steps);
}

void CoordinatorCore::DropSegments() {
  // Results under audit have no row yet.
  std::set<int32_t> needed;
  for (const auto& [key, results] : audit_.open) {
    for (const CoreAuditResult& result : results) {
      needed.insert(result.event.payload.segment);
    }
  }
  const auto retired = [this](int32_t stage, int64_t step) {
    return IsRetired(stage, step);
  };
  for (const SegmentRemovedRow& row :
       book_.Surplus(options_.payloads.bytes, needed, retired)) {
    book_.Remove(row);
    Record(row);
    AddEvent("retention", absl::StrCat("segment ", row.segment, ", ", row.bytes,
                                       " bytes of payloads"));
    Effect effect;
    effect.kind = Effect::Kind::kSegmentRemoved;
    effect.segment = row.segment;
    effects_.push_back(std::move(effect));
  }
}

void CoordinatorCore::RecoverSegments(const LedgerState& state) {
  for (const SegmentRemovedRow& row : state.removed_segments) {
    book_.Remove(row);
  }
  book_.Add(state.left_out);
  std::map<UnitId, int64_t> trained;  // streaming
  for (const BatchRow& batch : state.batches) {
    for (const auto* units : {&batch.units, &batch.dropped}) {
      for (const UnitId& unit : *units) {
        trained[unit] = batch.step;
      }
    }
  }
  for (const UnitRow& row : state.units) {
    const bool streaming = row.id.stage >= 0 &&
                           row.id.stage < plan_.num_stages() &&
                           plan_.IsStreaming(row.id.stage);
    const auto step = trained.find(row.id);
    book_.Add(row, !streaming              ? row.id.step
                   : step == trained.end() ? 0
                                           : step->second);
  }
}

absl::Status CoordinatorCore::CheckPayloadsKept(int32_t stage,
                                                int64_t step) const {
  for (const UnitRow& unit : UnitsOfStep(stage, step)) {
    if (book_.IsRemoved(unit.payload.segment)) {
      return absl::DataLossError(absl::StrCat(
          "the payloads of stage ", stage, " step ", step,
          " are retired: segment ", unit.payload.segment,
          " was deleted (log.keep_payload_bytes), because two newer "
          "checkpoints were there"));
    }
  }
  return absl::OkStatus();
}

}  // namespace cox
