#include "coordinator/ledger_reader.h"

#include <algorithm>
#include <cstdio>
#include <tuple>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/plan_record.h"
#include "coordinator/segments.h"

namespace cox {
namespace {

// The row of `rows`, ascending by `key`, whose key is `wanted`.
template <typename Row, typename Wanted, typename KeyOf>
const Row* Find(const std::vector<Row>& rows, const Wanted& wanted, KeyOf key) {
  const auto place = std::lower_bound(
      rows.begin(), rows.end(), wanted,
      [&key](const Row& row, const Wanted& value) { return key(row) < value; });
  return place != rows.end() && key(*place) == wanted ? &*place : nullptr;
}

}  // namespace

absl::StatusOr<RecordedRun> RecordedRun::Open(Fs& fs,
                                              const std::string& run_dir) {
  COX_ASSIGN_OR_RETURN(LedgerRecord record,
                       ReadSqliteLedger(JoinPath(run_dir, "ledger.db")));
  return FromRecord(fs, run_dir, std::move(record));
}

absl::StatusOr<RecordedRun> RecordedRun::FromRecord(Fs& fs, std::string run_dir,
                                                    LedgerRecord record) {
  const auto text = record.state.meta.find("plan");
  if (text == record.state.meta.end()) {
    return absl::FailedPreconditionError(absl::StrCat(
        run_dir,
        ": the ledger holds no plan: the run has not started, or an "
        "older build wrote it (resuming the run adds it)"));
  }
  COX_ASSIGN_OR_RETURN(PlanOptions options, ParsePlanRecord(text->second));
  COX_ASSIGN_OR_RETURN(RunPlan plan, RunPlan::Create(std::move(options)));
  for (const StageRow& row : record.state.stages) {
    if (row.stage >= 0 && row.stage < plan.num_stages() &&
        plan.stage(row.stage).total_steps == 0) {
      plan.SetTotalSteps(row.stage, row.total_steps);
    }
  }
  return RecordedRun(fs, std::move(run_dir), std::move(record),
                     std::move(plan));
}

std::string RecordedRun::Meta(const std::string& key) const {
  const auto found = state().meta.find(key);
  return found == state().meta.end() ? "" : found->second;
}

std::string RecordedRun::StageName(int32_t stage) const {
  if (stage < 0 || stage >= plan_.num_stages()) {
    return absl::StrCat("stage ", stage);
  }
  const StageKind kind = plan_.stage(stage).kind;
  const std::string name(StageKindName(kind));
  return plan_.StageBefore(stage, kind) < 0 ? name
                                            : absl::StrCat(name, "-", stage);
}

absl::StatusOr<int32_t> RecordedRun::FindStage(const std::string& text) const {
  std::string names;
  for (int32_t stage = 0; stage < plan_.num_stages(); ++stage) {
    const std::string name = StageName(stage);
    if (text == name || text == absl::StrCat(stage)) {
      return stage;
    }
    absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("stage: expected one of ", names, ", found '", text, "'"));
}

const UnitRow* RecordedRun::FindUnit(const UnitId& id) const {
  return Find(state().units, id, [](const UnitRow& row) { return row.id; });
}

const UnitFailedRow* RecordedRun::FindFailed(const UnitId& id) const {
  return Find(state().failed_units, id,
              [](const UnitFailedRow& row) { return row.id; });
}

bool RecordedRun::IsRetired(const UnitRow& unit) const {
  return Find(state().removed_segments, unit.payload.segment,
              [](const SegmentRemovedRow& row) { return row.segment; }) !=
         nullptr;
}

bool RecordedRun::IsRetired(int32_t stage, int64_t step) const {
  const absl::StatusOr<std::vector<UnitRow>> units = UnitsOfStep(stage, step);
  return units.ok() &&
         std::any_of(units->begin(), units->end(),
                     [this](const UnitRow& unit) { return IsRetired(unit); });
}

const StepRow* RecordedRun::FindStep(int32_t stage, int64_t step) const {
  return Find(state().steps, std::pair(stage, step), [](const StepRow& row) {
    return std::pair(row.stage, row.step);
  });
}

const BatchRow* RecordedRun::FindBatch(int32_t stage, int64_t step) const {
  return Find(state().batches, std::pair(stage, step), [](const BatchRow& row) {
    return std::pair(row.stage, row.step);
  });
}

const VersionRow* RecordedRun::FindVersion(const std::string& model,
                                           const PolicyVersion& version) const {
  return Find(state().versions, std::tuple(model, version.stage, version.step),
              [](const VersionRow& row) {
                return std::tuple(row.model, row.version.stage,
                                  row.version.step);
              });
}

const CheckpointRow* RecordedRun::NewestCheckpoint(int32_t stage,
                                                   int64_t last) const {
  const CheckpointRow* newest = nullptr;
  for (const CheckpointRow& row : state().checkpoints) {
    if (row.stage == stage && row.step <= last) {
      newest = &row;  // ascending
    }
  }
  return newest;
}

std::string RecordedRun::DirectoryOf(const CheckpointRow& row) const {
  const std::string own = JoinPath(JoinPath(JoinPath(run_dir_, "checkpoints"),
                                            BaseName(DirName(row.directory))),
                                   BaseName(row.directory));
  return fs_->Exists(own) ? own : row.directory;
}

absl::StatusOr<std::vector<UnitRow>> RecordedRun::UnitsOfStep(
    int32_t stage, int64_t step) const {
  std::vector<UnitRow> units;
  if (!plan_.IsStreaming(stage)) {
    auto place = std::lower_bound(
        state().units.begin(), state().units.end(), UnitId{stage, step, 0},
        [](const UnitRow& row, const UnitId& id) { return row.id < id; });
    for (; place != state().units.end() && place->id.stage == stage &&
           place->id.step == step;
         ++place) {
      units.push_back(*place);
    }
    return units;
  }
  const BatchRow* batch = FindBatch(stage, step);
  if (batch == nullptr) {
    return units;
  }
  for (const UnitId& id : batch->units) {
    const UnitRow* unit = FindUnit(id);
    if (unit == nullptr) {
      return absl::DataLossError(
          absl::StrCat("ledger: the batch of stage ", stage, " step ", step,
                       " names unit ", id.ToString(), ", which has no row"));
    }
    units.push_back(*unit);
  }
  return units;
}

absl::StatusOr<std::vector<Trajectory>> RecordedRun::ReadUnit(
    const UnitRow& unit) const {
  if (IsRetired(unit)) {
    return absl::NotFoundError(absl::StrCat(
        "unit ", unit.id.ToString(), ": payload of ", StageName(unit.id.stage),
        " step ", unit.id.step, " retired: segment ", unit.payload.segment,
        " was deleted when newer checkpoints made it needless "
        "(log.keep_payload_bytes)"));
  }
  absl::StatusOr<std::string> bytes =
      ReadPayload(*fs_, SegmentsDir(), unit.payload, unit.sha256);
  COX_RETURN_IF_ERROR(
      Annotate(bytes.status(), absl::StrCat("unit ", unit.id.ToString())));
  absl::StatusOr<std::vector<Trajectory>> rows = ParseUnit(*bytes);
  COX_RETURN_IF_ERROR(
      Annotate(rows.status(), absl::StrCat("unit ", unit.id.ToString())));
  return rows;
}

bool IsPlaceholder(const std::vector<Trajectory>& trajectories) {
  return std::all_of(
      trajectories.begin(), trajectories.end(), [](const Trajectory& t) {
        return t.finish == FinishReason::kAbort && t.response_ids.empty();
      });
}

absl::StatusOr<UnitId> ParseUnitId(const std::string& text) {
  UnitId id;
  long long step = 0;
  int end = 0;
  if (std::sscanf(text.c_str(), "s%d.%lld.%d%n", &id.stage, &step, &id.index,
                  &end) == 3) {
    id.step = step;
    if (static_cast<size_t>(end) == text.size() && id.ToString() == text) {
      return id;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unit: expected a form like s4.12.3, found '", text, "'"));
}

absl::StatusOr<TrajectoryId> ParseTrajectoryId(const std::string& text) {
  TrajectoryId id;
  const size_t slash = text.find('/');
  int end = 0;
  if (slash != std::string::npos) {
    const absl::StatusOr<UnitId> unit = ParseUnitId(text.substr(0, slash));
    const std::string rest = text.substr(slash + 1);
    if (unit.ok() && std::sscanf(rest.c_str(), "%d.%d%n", &id.prompt,
                                 &id.sample, &end) == 2) {
      id.unit = *unit;
      if (id.ToString() == text) {
        return id;
      }
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "sample: expected a form like s4.12.3/5.0, found '", text, "'"));
}

}  // namespace cox
