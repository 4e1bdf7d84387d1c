#ifndef COX_COORDINATOR_LEDGER_READER_H_
#define COX_COORDINATOR_LEDGER_READER_H_

// A run directory for those who only read it: ledger.db, the plan in it and
// the payloads in segments/. Works while the run is live; writes nothing.

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/ledger.h"
#include "coordinator/plan.h"
#include "lib/base/fs.h"
#include "lib/data/trajectory.h"

namespace cox {

// Immutable, so shared freely; pointers into it live as long as it does.
class RecordedRun {
 public:
  // NOT_FOUND: no ledger in `run_dir`. FAILED_PRECONDITION: written by a build
  // that did not record the plan. DATA_LOSS: damaged.
  static absl::StatusOr<RecordedRun> Open(Fs& fs, const std::string& run_dir);
  // From a record that is in memory already.
  static absl::StatusOr<RecordedRun> FromRecord(Fs& fs, std::string run_dir,
                                                LedgerRecord record);

  const std::string& run_dir() const { return run_dir_; }
  const LedgerRecord& record() const { return record_; }
  const LedgerState& state() const { return record_.state; }
  const RunPlan& plan() const { return plan_; }
  std::string Meta(const std::string& key) const;  // "" = no such row
  std::string SegmentsDir() const { return JoinPath(run_dir_, "segments"); }
  Fs& fs() const { return *fs_; }

  // "ppo", or "ppo-4" for the second stage of a kind.
  std::string StageName(int32_t stage) const;
  // Number, kind or name of a stage. INVALID_ARGUMENT lists the stages.
  absl::StatusOr<int32_t> FindStage(const std::string& text) const;

  // nullptr = no such row.
  const UnitRow* FindUnit(const UnitId& id) const;
  const UnitFailedRow* FindFailed(const UnitId& id) const;
  // Whether the unit's payload was deleted with its segment (retention).
  bool IsRetired(const UnitRow& unit) const;
  // The same for a step: any of its units.
  bool IsRetired(int32_t stage, int64_t step) const;
  const StepRow* FindStep(int32_t stage, int64_t step) const;
  const BatchRow* FindBatch(int32_t stage, int64_t step) const;
  const VersionRow* FindVersion(const std::string& model,
                                const PolicyVersion& version) const;
  // Newest checkpoint of a stage whose step is at most `last`.
  const CheckpointRow* NewestCheckpoint(int32_t stage, int64_t last) const;

  // Where its files are: below run_dir if they are there (a directory that was
  // moved or copied), else where the row says.
  std::string DirectoryOf(const CheckpointRow& row) const;

  // The units that a step trains on, in batch order: those of the step in unit
  // order, or of its batch row in streaming. DATA_LOSS: a batch names a unit
  // without a row.
  absl::StatusOr<std::vector<UnitRow>> UnitsOfStep(int32_t stage,
                                                   int64_t step) const;
  // Parsed payload. NOT_FOUND: it is retired. DATA_LOSS names segment and
  // place.
  absl::StatusOr<std::vector<Trajectory>> ReadUnit(const UnitRow& unit) const;

 private:
  RecordedRun(Fs& fs, std::string run_dir, LedgerRecord record, RunPlan plan)
      : fs_(&fs),
        run_dir_(std::move(run_dir)),
        record_(std::move(record)),
        plan_(std::move(plan)) {}
  Fs* fs_;
  std::string run_dir_;
  LedgerRecord record_;
  RunPlan plan_;
};

// Whether a unit's payload is that of one that was given up: no answer at all.
bool IsPlaceholder(const std::vector<Trajectory>& trajectories);

// "s4.12.3" and "s4.12.3/5.0". INVALID_ARGUMENT shows the form.
absl::StatusOr<UnitId> ParseUnitId(const std::string& text);
absl::StatusOr<TrajectoryId> ParseTrajectoryId(const std::string& text);

}  // namespace cox

#endif  // COX_COORDINATOR_LEDGER_READER_H_
