#ifndef COX_TESTS_SIM_CHECKER_H_
#define COX_TESTS_SIM_CHECKER_H_

// The invariants of a run, looked at row by row as they become durable and
// reply by reply as they leave (docs/durability.md, "Simulation"). It knows the
// plan and the oracle, and nothing of the cores.

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/ledger.h"
#include "coordinator/plan.h"
#include "lib/base/fs.h"
#include "tests/sim/model.h"

namespace cox::sim {

class Checker {
 public:
  Checker(const Variant& variant, const RunPlan& plan, Fs& fs);

  // A transaction that is about to become visible.
  void OnRows(const std::vector<LedgerRow>& rows, Epoch epoch);
  // An acknowledgement that lets its receiver forget; `durable`: its row
  // would survive a power loss now.
  void OnUnitAck(const UnitId& unit, const std::string& sha256, bool durable);
  void OnStepAck(int32_t stage, int64_t step, int64_t generation);
  // A learner's call was served.
  void OnServed(int64_t caller_generation, int64_t generation);
  // After a crash or restart: what was acknowledged is there, what rows name
  // can be read.
  void OnRecovered(const LedgerState& state);
  // A restored trainer.
  void OnLoaded(int32_t stage, const TrainerState& state);
  // At the end.
  void OnDone(const LedgerState& state);
  void Violation(const std::string& what);

  bool ok() const { return violation_.empty(); }
  const std::string& violation() const { return violation_; }

 private:
  void Check(const UnitRow& row);
  void Check(const BatchRow& row);
  void Check(const StepRow& row);
  void Check(const VersionRow& row);
  void Check(const CheckpointRow& row);
  void Check(const CheckpointRemovedRow& row);
  void Check(const SegmentRemovedRow& row);
  void Check(const UnitFailedRow& row);
  void Check(const GenerationRow& row);
  void Check(const StageRow& row);
  template <typename Row>
  void Check(const Row&) {}
  void CheckpointIsThere(const CheckpointRow& row);
  bool streaming(int32_t stage) const { return plan_.IsStreaming(stage); }

  const Variant variant_;
  RunPlan plan_;
  const Oracle& oracle_;
  Fs& fs_;
  std::string violation_;
  Epoch epoch_;
  int64_t generation_ = 0;
  std::map<UnitId, UnitRow> units_;
  std::map<UnitId, std::string> acknowledged_;
  std::map<std::pair<int32_t, int64_t>, std::vector<UnitId>> batches_;
  std::set<UnitId> trained_;
  std::map<int32_t, std::vector<StepRow>> steps_;
  std::map<std::pair<int32_t, int64_t>, CheckpointRow> checkpoints_;
  std::map<int32_t, TrainerState> fold_;  // after the last step
  std::map<UnitId, int64_t> used_in_;     // trained or dropped by which step
  std::set<int32_t> done_;                // stages
  std::set<UnitId> failed_;               // given up
};

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_CHECKER_H_
