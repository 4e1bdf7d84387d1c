#ifndef COX_COORDINATOR_LEFT_OUT_H_
#define COX_COORDINATOR_LEFT_OUT_H_

// Which of a ledger's rows no restart reads, so that a coordinator that starts
// holds, and parses, as much after a million steps as after a thousand. The
// rule is CoordinatorCore::ForgetHistory's: what a running one has forgotten, a
// starting one leaves in the file.

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "coordinator/ledger.h"

namespace cox {

// The last step of a stage that nobody starts before: older than its second
// newest checkpoint and than its `keep_steps` newest steps; 0 = none.
// `checkpoints`: steps of its checkpoint rows, newest first.
int64_t ForgottenEnd(const std::vector<int64_t>& checkpoints, int64_t committed,
                     int64_t keep_steps);

// Decides row by row, and adds up what it leaves out. First AddStep,
// AddCheckpoint and AddStage for every row of those tables, then Settle, then
// the batches, then the units.
class RowFilter {
 public:
  explicit RowFilter(const LedgerWindow& options) : options_(options) {}

  void AddStep(int32_t stage, int64_t step);
  void AddCheckpoint(int32_t stage, int64_t step);
  void AddStage(int32_t stage, bool done);
  void AddEvent(int64_t number);
  void Settle();

  bool KeepsStep(int32_t stage, int64_t step) const;
  // A step that only its checkpoint keeps: its metrics say how good that is.
  bool KeepsMetricsOnly(int32_t stage, int64_t step) const;
  bool KeepsVersion(const std::string& model, PolicyVersion version) const;
  bool KeepsEvent(int64_t number) const;
  // Batches and units: false = added to what is left out.
  bool Take(const BatchRow& row);
  bool Take(const UnitId& id, const PayloadRef& payload);

  LeftOutRows TakeLeftOut() { return std::move(left_out_); }

 private:
  struct Stage {
    int64_t committed = 0;
    std::vector<int64_t> checkpoints;  // newest first, after Settle()
    bool done = false;
    bool streaming = false;  // has batch rows
    int64_t end = 0;         // ForgottenEnd()
    // Streaming: the step of each unit that a left out batch names.
    std::map<std::pair<int64_t, int32_t>, int64_t> step_of;
  };
  int64_t EndOf(int32_t stage) const;

  const LedgerWindow options_;
  std::map<int32_t, Stage> stages_;
  int64_t last_event_ = 0;
  LeftOutRows left_out_;
};

// The same for a whole state.
LedgerState LeaveOut(LedgerState state, const LedgerWindow& options);

}  // namespace cox

#endif  // COX_COORDINATOR_LEFT_OUT_H_
