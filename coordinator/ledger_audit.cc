#include "coordinator/ledger_audit.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/retirement_check.h"
#include "coordinator/segments.h"
#include "coordinator/step_record.h"
#include "lib/base/hash.h"

namespace cox {
namespace {

constexpr int64_t kProgressBytes = int64_t{8} << 20;

class Audit {
 public:
  Audit(const RecordedRun& run, const AuditOptions& options)
      : run_(run),
        record_(run.record()),
        state_(run.state()),
        plan_(run.plan()),
        options_(options),
        report_(EmptyAuditReport()) {}

  AuditReport Run() {
    CheckSteps();
    CheckTransactions();
    CheckGenerations();
    CheckVersions();
    CheckUnits();
    CheckBatches();
    CheckConservation();
    CheckReferences();
    CheckCheckpoints();
    if (!options_.skip_payloads) {
      CheckPayloads();
    }
    return std::move(report_);
  }

 private:
  AuditFinding& At(Invariant invariant) {
    return report_.findings[static_cast<size_t>(invariant)];
  }
  void Count(Invariant invariant, int64_t n = 1) { At(invariant).checked += n; }
  void Bad(Invariant invariant, const std::string& where,
           const std::string& what, const char* between = ": ") {
    AuditFinding& finding = At(invariant);
    if (finding.violations++ == 0) {
      finding.first = absl::StrCat(where, between, what);
    }
  }
  // Fails unless `found` = `expected`.
  void Same(Invariant invariant, const std::string& where,
            const std::string& what, const std::string& expected,
            const std::string& found) {
    if (expected != found) {
      Bad(invariant, where,
          absl::StrCat(what, ": expected ", expected.empty() ? "''" : expected,
                       ", found ", found.empty() ? "''" : found));
    }
  }

  std::string Where(int32_t stage, int64_t step) const {
    return absl::StrCat(run_.StageName(stage), " step ", step);
  }
  std::string Where(const UnitRow& unit) const {
    return absl::StrCat(Where(unit.id.stage, unit.id.step), " unit ",
                        unit.id.ToString());
  }
  std::string Where(const VersionRow& row) const {
    return absl::StrCat(row.model, " ", row.version.ToString());
  }
  bool KnownStage(int32_t stage) const {
    return stage >= 0 && stage < plan_.num_stages();
  }
  // Transaction of a row of one of the lists; 0 = not numbered.
  template <typename Row>
  static int64_t Txn(const std::vector<Row>& rows,
                     const std::vector<int64_t>& txns, const Row* row) {
    const size_t i = static_cast<size_t>(row - rows.data());
    return i < txns.size() ? txns[i] : 0;
  }
  int64_t Txn(const UnitRow* row) const {
    return Txn(state_.units, record_.unit_txn, row);
  }
  int64_t Txn(const StepRow* row) const {
    return Txn(state_.steps, record_.step_txn, row);
  }

  void CheckSteps() {
    std::map<int32_t, int64_t> last;
    for (const StepRow& row : state_.steps) {
      Count(Invariant::kStepsContiguous);
      const std::string where = Where(row.stage, row.step);
      const int64_t expected = ++last[row.stage];
      if (row.step != expected) {
        Bad(Invariant::kStepsContiguous, where,
            absl::StrCat("expected step ", expected, " next"));
        last[row.stage] = row.step;
      }
      if (!KnownStage(row.stage) ||
          !plan_.stage(row.stage).has_learner_steps() ||
          row.step > plan_.stage(row.stage).total_steps) {
        Bad(Invariant::kStepsContiguous, where, "not in the plan");
      }
    }
    for (const StageRow& row : state_.stages) {
      if (row.state == "done" && KnownStage(row.stage) &&
          plan_.stage(row.stage).has_learner_steps() &&
          last[row.stage] != plan_.stage(row.stage).total_steps) {
        Bad(Invariant::kStepsContiguous, run_.StageName(row.stage),
            absl::StrCat("done with ", last[row.stage], " of ",
                         plan_.stage(row.stage).total_steps, " steps"));
      }
    }
  }

  void CheckTransactions() {
    const std::string run_id = run_.Meta("run_id");
    Epoch epoch;
    int64_t number = 0;
    for (const TransactionRow& row : record_.transactions) {
      Count(Invariant::kEpochs);
      Count(Invariant::kRunId);
      const std::string where = absl::StrCat("transaction ", row.number);
      if (row.number != ++number) {
        Bad(Invariant::kEpochs, where,
            absl::StrCat("expected number ", number));
        number = row.number;
      }
      if (row.epoch < epoch || row.epoch > record_.epoch) {
        Bad(Invariant::kEpochs, where,
            absl::StrCat("epoch ", row.epoch.value, " after ", epoch.value,
                         ", the newest is ", record_.epoch.value));
      }
      epoch = std::max(epoch, row.epoch);
      Same(Invariant::kRunId, where, "run id", run_id, row.run_id);
    }
    for (const auto* txns :
         {&record_.unit_txn, &record_.batch_txn, &record_.version_txn,
          &record_.step_txn, &record_.checkpoint_txn, &record_.event_txn,
          &record_.removed_txn, &record_.failed_txn}) {
      for (const int64_t txn : *txns) {
        if (txn > number) {
          Bad(Invariant::kEpochs, absl::StrCat("a row of transaction ", txn),
              absl::StrCat("the last one is ", number));
        }
      }
    }
    int64_t event = 0;
    for (const EventRow& row : state_.events) {
      if (row.number != ++event) {
        Bad(Invariant::kEpochs, absl::StrCat("event ", row.number),
            absl::StrCat("expected number ", event));
        event = row.number;
      }
    }
  }

  // Steps and checkpoints in the order in which they were committed.
  void CheckGenerations() {
    std::vector<std::tuple<int64_t, Generation, std::string>> rows;
    for (const StepRow& row : state_.steps) {
      rows.emplace_back(Txn(&row), row.generation, Where(row.stage, row.step));
    }
    for (const CheckpointRow& row : state_.checkpoints) {
      const StepRow* step = run_.FindStep(row.stage, row.step);
      const int64_t txn = Txn(state_.checkpoints, record_.checkpoint_txn, &row);
      if (txn != 0) {  // else its place among the steps is not known
        rows.emplace_back(
            txn, row.generation,
            absl::StrCat(Where(row.stage, row.step), " checkpoint"));
      }
      if (step != nullptr && row.generation < step->generation) {
        Bad(Invariant::kGenerations, Where(row.stage, row.step),
            "its checkpoint is of an older generation");
      }
    }
    for (const TransactionRow& row : record_.transactions) {
      rows.emplace_back(row.number, row.generation,
                        absl::StrCat("transaction ", row.number));
    }
    // Unnumbered steps (transaction 0) come first, in the order of their keys.
    std::stable_sort(rows.begin(), rows.end(),
                     [](const auto& a, const auto& b) {
                       return std::get<0>(a) < std::get<0>(b);
                     });
    Generation last;
    for (const auto& [txn, generation, where] : rows) {
      Count(Invariant::kGenerations);
      if (generation < last || generation > state_.generation) {
        Bad(Invariant::kGenerations, where,
            absl::StrCat("generation ", generation.value, " after ", last.value,
                         ", the newest is ", state_.generation.value));
      }
      last = std::max(last, generation);
    }
  }

  void CheckVersions() {
    for (const VersionRow& row : state_.versions) {
      Count(Invariant::kWeightHashes);
      Same(Invariant::kWeightHashes, Where(row), "hash of its manifest",
           row.content_hash, Sha256Hex(row.manifest));
      const int32_t stage = row.version.stage;
      if (row.model != "policy" || row.version.step == 0 ||
          !KnownStage(stage) || !plan_.stage(stage).has_learner_steps()) {
        continue;
      }
      const StepRow* step = run_.FindStep(stage, row.version.step);
      if (step == nullptr) {
        Bad(Invariant::kWeightHashes, Where(row), "its step is not committed");
        continue;
      }
      Same(Invariant::kWeightHashes, Where(row), "weights of its step",
           step->weight_hash, row.content_hash);
      if (Txn(state_.versions, record_.version_txn, &row) < Txn(step)) {
        Bad(Invariant::kWeightHashes, Where(row),
            "published before its step was committed");
      }
    }
  }

  void CheckUnits() {
    for (const UnitRow& row : state_.units) {
      const int32_t stage = row.id.stage;
      if (!KnownStage(stage)) {
        continue;  // conservation says so
      }
      Count(Invariant::kUnitVersion);
      Count(Invariant::kPublishedWeights);
      if (!plan_.IsStreaming(stage)) {
        const int64_t expected = plan_.VersionFor(stage, row.id.step).step;
        Same(Invariant::kUnitVersion, Where(row), "version",
             absl::StrCat(expected), absl::StrCat(row.version_step));
      } else if (row.version_step < 0) {
        Bad(Invariant::kUnitVersion, Where(row), "no version");
      }
      const VersionRow* version =
          run_.FindVersion("policy", {stage, row.version_step});
      if (version == nullptr) {
        Bad(Invariant::kPublishedWeights, Where(row),
            absl::StrCat("version ", row.version_step, " was never published"));
        continue;
      }
      Same(Invariant::kPublishedWeights, Where(row), "weights",
           version->content_hash, row.policy_hash);
      if (Txn(state_.versions, record_.version_txn, version) > Txn(&row) &&
          Txn(&row) != 0) {
        Bad(Invariant::kPublishedWeights, Where(row),
            "submitted before its version was published");
      }
    }
  }

  // Batches of committed steps, and of frozen ones.
  void CheckBatches() {
    std::map<UnitId, int64_t> used;
    for (const StepRow& row : state_.steps) {
      if (KnownStage(row.stage) && plan_.stage(row.stage).has_units()) {
        CheckBatch(row, used);
      }
    }
    for (const BatchRow& row : state_.batches) {
      if (run_.FindStep(row.stage, row.step) == nullptr) {
        for (const UnitId& id : row.units) {
          UseUnit(id, row.step, used);
        }
      }
    }
  }

  void UseUnit(const UnitId& id, int64_t step,
               std::map<UnitId, int64_t>& used) {
    Count(Invariant::kUnitInOneStep);
    const auto [place, first] = used.emplace(id, step);
    if (!first) {
      Bad(Invariant::kUnitInOneStep,
          absl::StrCat(Where(id.stage, step), " unit ", id.ToString()),
          absl::StrCat("also in step ", place->second));
    }
  }

  void CheckBatch(const StepRow& row, std::map<UnitId, int64_t>& used) {
    const std::string where = Where(row.stage, row.step);
    Count(Invariant::kStepUnits);
    Count(Invariant::kBatchHash);
    const absl::StatusOr<std::vector<UnitRow>> units =
        run_.UnitsOfStep(row.stage, row.step);
    if (!units.ok()) {
      Bad(Invariant::kStepUnits, where, std::string(units.status().message()));
      return;
    }
    const int32_t expected = plan_.stage(row.stage).units_per_step();
    Same(Invariant::kStepUnits, where, "units", absl::StrCat(expected),
         absl::StrCat(units->size()));
    const BatchRow* batch = run_.FindBatch(row.stage, row.step);
    const int64_t frozen = batch == nullptr
                               ? Txn(&row)
                               : Txn(state_.batches, record_.batch_txn, batch);
    if (frozen > Txn(&row)) {
      Bad(Invariant::kStepUnits, where,
          "committed before its batch was frozen");
    }
    for (const UnitRow& unit : *units) {
      UseUnit(unit.id, row.step, used);
      if (Txn(run_.FindUnit(unit.id)) > frozen) {
        Bad(Invariant::kStepUnits,
            absl::StrCat(where, " unit ", unit.id.ToString()),
            "submitted after its batch was complete");
      }
      CheckStaleness(row, unit);
    }
    Same(Invariant::kBatchHash, where, "batch hash", row.batch_sha256,
         BatchHash(ToBatchUnits(*units)));
  }

  void CheckStaleness(const StepRow& row, const UnitRow& unit) {
    Count(Invariant::kStaleness);
    const SchedulePlan& schedule = plan_.schedule();
    const int64_t bound =
        plan_.IsStreaming(row.stage) ? schedule.eta : schedule.lag;
    const int64_t age = row.step - 1 - unit.version_step;
    if (age < 0 || age > bound) {
      Bad(Invariant::kStaleness,
          absl::StrCat(Where(row.stage, row.step), " unit ",
                       unit.id.ToString()),
          absl::StrCat("staleness ", age, ", expected 0 to ", bound));
    }
  }

  // Every unit row is of the plan; a finished stage has all of them; in
  // streaming each is in a batch, dropped by one, or still queued.
  void CheckConservation() {
    std::map<int32_t, int64_t> submitted;
    for (const UnitRow& row : state_.units) {
      Count(Invariant::kConservation);
      if (!plan_.UnitExists(row.id)) {
        Bad(Invariant::kConservation, absl::StrCat("unit ", row.id.ToString()),
            "not in the plan");
        continue;
      }
      ++submitted[row.id.stage];
    }
    for (const StageRow& row : state_.stages) {
      if (!KnownStage(row.stage) || !plan_.stage(row.stage).has_units() ||
          plan_.IsStreaming(row.stage) || row.state != "done") {
        continue;
      }
      const StagePlan& stage = plan_.stage(row.stage);
      Same(Invariant::kConservation, run_.StageName(row.stage),
           "submitted units of a finished stage",
           absl::StrCat(stage.total_steps * stage.units_per_step()),
           absl::StrCat(submitted[row.stage]));
    }
    std::map<UnitId, int64_t> seen;
    for (const BatchRow& row : state_.batches) {
      for (const auto* list : {&row.units, &row.dropped}) {
        for (const UnitId& id : *list) {
          const std::string where =
              absl::StrCat(Where(row.stage, row.step), " unit ", id.ToString());
          if (run_.FindUnit(id) == nullptr) {
            Bad(Invariant::kConservation, where,
                "in a batch, but never submitted");
          }
          if (!seen.emplace(id, row.step).second && list == &row.dropped) {
            Bad(Invariant::kConservation, where,
                "dropped, though another batch names it");
          }
        }
      }
    }
  }

  // A payload has bytes of its own; what a restart starts from is there.
  void CheckReferences() {
    std::vector<size_t> order(state_.units.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const auto place = [this](size_t i) {
      const PayloadRef& ref = state_.units[i].payload;
      return std::pair(ref.segment, ref.offset);
    };
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return place(a) < place(b); });
    std::map<int32_t, uint64_t> sizes;
    const RetirementCheck retired(run_);
    const UnitRow* before = nullptr;
    for (const size_t i : order) {
      const UnitRow& row = state_.units[i];
      const PayloadRef& ref = row.payload;
      Count(Invariant::kNothingDeleted);
      if (run_.IsRetired(row)) {
        ++report_.retired_payloads;
        if (const std::string why = retired.WhyNeeded(row); !why.empty()) {
          Bad(Invariant::kNothingDeleted, Where(row), why);
        }
        continue;
      }
      auto [size, first] = sizes.try_emplace(ref.segment, 0);
      if (first) {
        size->second =
            run_.fs()
                .FileSize(SegmentPath(run_.SegmentsDir(), ref.segment))
                .value_or(0);
      }
      if (ref.offset + ref.length > size->second) {
        Bad(Invariant::kNothingDeleted, Where(row),
            absl::StrCat("bytes ", ref.offset, "+", ref.length, " of ",
                         SegmentPath(run_.SegmentsDir(), ref.segment),
                         ", which has ", size->second));
      }
      if (before != nullptr && before->payload.segment == ref.segment &&
          before->payload.offset + before->payload.length > ref.offset) {
        Bad(Invariant::kNothingDeleted, Where(row),
            absl::StrCat("its bytes are also those of unit ",
                         before->id.ToString()));
      }
      before = &row;
    }
    for (const StageRow& row : state_.stages) {
      if (row.state != "done" || !KnownStage(row.stage) ||
          !plan_.stage(row.stage).has_learner_steps()) {
        continue;
      }
      Count(Invariant::kNothingDeleted);
      const int64_t last = plan_.stage(row.stage).total_steps;
      const CheckpointRow* newest = run_.NewestCheckpoint(row.stage, last);
      if (newest == nullptr || newest->step != last) {
        Bad(Invariant::kNothingDeleted, run_.StageName(row.stage),
            "done without the checkpoint of its last step");
      }
    }
  }

  void CheckCheckpoints() {
    for (const CheckpointRow& row : state_.checkpoints) {
      const std::string where =
          absl::StrCat(Where(row.stage, row.step), " checkpoint");
      Count(Invariant::kCheckpointOfStep);
      const StepRow* step = run_.FindStep(row.stage, row.step);
      if (step == nullptr) {
        Bad(Invariant::kCheckpointOfStep, where, "its step is not committed");
      } else {
        Same(Invariant::kCheckpointOfStep, where, "weights of its step",
             step->weight_hash, row.weight_hash);
        const int64_t txn =
            Txn(state_.checkpoints, record_.checkpoint_txn, &row);
        if (txn != 0 && txn < Txn(step)) {
          Bad(Invariant::kCheckpointOfStep, where,
              "recorded before its step was committed");
        }
      }
      if (options_.checkpoint == nullptr) {
        continue;
      }
      const auto facts = options_.checkpoint(row);
      if (!facts.ok()) {
        Count(Invariant::kCheckpointFiles);
        Bad(Invariant::kCheckpointFiles, where,
            std::string(facts.status().message()));
        if (absl::IsNotFound(facts.status())) {
          Bad(Invariant::kNothingDeleted, where,
              std::string(facts.status().message()));
        }
      } else if (facts->has_value()) {
        Count(Invariant::kCheckpointFiles);
        CheckFacts(row, step, **facts, where);
      }
    }
  }

  void CheckFacts(const CheckpointRow& row, const StepRow* step,
                  const CheckpointFacts& facts, const std::string& where) {
    Count(Invariant::kRunId);
    Same(Invariant::kRunId, where, "run id", run_.Meta("run_id"), facts.run_id);
    Same(Invariant::kCheckpointFiles, where, "state", row.state_sha256,
         facts.state_sha256);
    Same(Invariant::kCheckpointOfStep, where, "stage, step and generation",
         absl::StrCat(row.stage, ".", row.step, ".g", row.generation.value),
         absl::StrCat(facts.stage, ".", facts.step, ".g", facts.generation));
    Same(Invariant::kCheckpointOfStep, where, "weights in its manifest",
         row.weight_hash, facts.weight_hash);
    Same(Invariant::kCheckpointOfStep, where, "weights in its files",
         row.weight_hash, facts.trained_hash);
    if (step != nullptr) {
      Same(Invariant::kCheckpointOfStep, where, "batch of its step",
           step->batch_sha256, facts.batch_sha256);
    }
    // Units that are still open may need an older version (fixed_lag).
    const int64_t lag = plan_.schedule().lag;
    if (!KnownStage(row.stage) ||
        plan_.stage(row.stage).kind != StageKind::kPpo ||
        plan_.IsStreaming(row.stage)) {
      return;
    }
    const int64_t total = plan_.stage(row.stage).total_steps;
    for (int64_t version = std::max<int64_t>(0, row.step - lag);
         version < row.step && row.step < total; ++version) {
      Count(Invariant::kNothingDeleted);
      const std::string folder = absl::StrCat("trainer/version_", version, "/");
      if (std::none_of(facts.files.begin(), facts.files.end(),
                       [&folder](const std::string& name) {
                         return name.starts_with(folder);
                       })) {
        Bad(Invariant::kNothingDeleted, where,
            absl::StrCat("version ", version,
                         ", which open units may need, is not in it"));
      }
    }
  }

  // In the order of the files, so that a disk reads them once.
  void CheckPayloads() {
    std::vector<const UnitRow*> rows;
    int64_t total = 0;
    for (const UnitFailedRow& row : state_.failed_units) {
      if (run_.FindUnit(row.id) == nullptr) {
        Bad(Invariant::kFailedUnits, absl::StrCat("unit ", row.id.ToString()),
            "given up, but no placeholder is recorded");
      }
    }
    for (const UnitRow& row : state_.units) {
      if (run_.IsRetired(row)) {
        continue;
      }
      rows.push_back(&row);
      total += static_cast<int64_t>(row.payload.length);
    }
    std::sort(rows.begin(), rows.end(), [](const UnitRow* a, const UnitRow* b) {
      return std::pair(a->payload.segment, a->payload.offset) <
             std::pair(b->payload.segment, b->payload.offset);
    });
    int64_t told = 0;
    for (const UnitRow* row : rows) {
      Count(Invariant::kPayloadHash);
      CheckPayload(*row);
      report_.payload_bytes += static_cast<int64_t>(row->payload.length);
      if (options_.progress && report_.payload_bytes - told > kProgressBytes) {
        told = report_.payload_bytes;
        options_.progress(told, total);
      }
    }
  }

  void CheckPayload(const UnitRow& row) {
    const absl::StatusOr<std::vector<Trajectory>> trajectories =
        run_.ReadUnit(row);
    if (!trajectories.ok()) {
      // The message begins with the unit.
      Bad(Invariant::kPayloadHash, Where(row.id.stage, row.id.step),
          std::string(trajectories.status().message()), " ");
      return;
    }
    Count(Invariant::kFailedUnits);
    const bool placeholder = IsPlaceholder(*trajectories);
    if (placeholder != (run_.FindFailed(row.id) != nullptr)) {
      Bad(Invariant::kFailedUnits, Where(row),
          placeholder ? "a placeholder, but the unit was not given up"
                      : "given up, but its payload has answers");
    }
    for (const Trajectory& t : *trajectories) {
      if (t.id.unit != row.id || t.policy_hash != row.policy_hash ||
          t.version != PolicyVersion{row.id.stage, row.version_step}) {
        Bad(Invariant::kPayloadHash, Where(row),
            absl::StrCat("its bytes hold trajectory ", t.id.ToString(),
                         " of version ", t.version.ToString(), ", weights ",
                         t.policy_hash));
        return;
      }
    }
  }

  const RecordedRun& run_;
  const LedgerRecord& record_;
  const LedgerState& state_;
  const RunPlan& plan_;
  const AuditOptions& options_;
  AuditReport report_;
};

}  // namespace

AuditReport AuditLedger(const RecordedRun& run, const AuditOptions& options) {
  return Audit(run, options).Run();
}

}  // namespace cox
