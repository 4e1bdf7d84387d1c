#ifndef COX_COORDINATOR_RETENTION_H_
#define COX_COORDINATOR_RETENTION_H_

// What of a run may be deleted (docs/durability.md, rule 20). Functions of
// rows alone: the coordinator decides with them, `cox ckpt ls` and `cox ledger
// verify` say with them why something is still there, or is not.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/ledger.h"
#include "coordinator/plan.h"

namespace cox {

struct CheckpointRetention {
  int32_t keep_last = 2;    // per stage; fewer than 2 count as 2
  int32_t keep_best = 0;    // per stage, besides
  std::string best_metric;  // of the step that a checkpoint holds
  bool best_is_highest = true;
};

// The metric `name` of a step; nullopt = none, or not a number.
std::optional<double> MetricOf(const StepRow& step, const std::string& name);

// Why each of `rows`, checkpoints of one stage with the newest first, stays:
// "last", "best objective/scores = 0.61", "end of the stage", or several with
// commas; "" = it may be deleted. `metric` gives CheckpointRetention's metric
// of a step, which may be missing. Of equal values the newer one is better, so
// what is deleted can never become one of the best again.
std::vector<std::string> WhyKept(
    const CheckpointRetention& retention,
    const std::vector<CheckpointRow>& rows, int64_t total_steps,
    const std::function<std::optional<double>(int64_t step)>& metric);

struct PayloadRetention {
  // Segments are deleted, the oldest first, while all of them together are
  // larger than this.
  uint64_t bytes = UINT64_MAX;
  // Payloads of so many last steps of a ppo stage stay in any case.
  int64_t steps = 0;
};

// Of each row, in the same order.
std::vector<int64_t> StepsOf(const std::vector<CheckpointRow>& rows);

// The last step of `stage` whose payloads no restart reads: training resumes
// from the newest or the second newest checkpoint row. INT64_MAX: all, once a
// stage without learner steps is done. `checkpoints`: steps of the stage's
// checkpoint rows, newest first; `committed`: its committed steps.
int64_t RetiredUpTo(const RunPlan& plan, int32_t stage, bool stage_done,
                    const std::vector<int64_t>& checkpoints, int64_t committed,
                    int64_t keep_steps);

// Which segment files hold what, as rows come and go.
class SegmentBook {
 public:
  // `trained` = the step that has the unit in its batch, or that dropped it;
  // 0 = none yet (streaming).
  void Add(const UnitRow& unit, int64_t trained);
  void Add(const LeftOutRows& rows);
  void Settle(const UnitRow& unit, int64_t trained);
  void Remove(const SegmentRemovedRow& row);

  bool IsRemoved(int32_t segment) const { return removed_.contains(segment); }
  // Segments to delete, the oldest first. Never the newest one, which is still
  // written, and none of `needed`. `retired(stage, step)`: nobody needs the
  // units of that step; step 0 = of units that no step has.
  std::vector<SegmentRemovedRow> Surplus(
      uint64_t budget, const std::set<int32_t>& needed,
      const std::function<bool(int32_t stage, int64_t step)>& retired) const;

 private:
  struct StageUse {
    int64_t last_step = 0;  // that trained a unit of it
    int64_t open = 0;       // units that no step has
  };
  struct Use {
    uint64_t bytes = 0;
    std::map<int32_t, StageUse> stages;
  };
  std::map<int32_t, Use> segments_;
  std::set<int32_t> removed_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_RETENTION_H_
