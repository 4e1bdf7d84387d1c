#ifndef COX_TESTS_COORDINATOR_RECORDED_RUN_H_
#define COX_TESTS_COORDINATOR_RECORDED_RUN_H_

// A finished small run written with the production ledger and segment store:
// stage sft with 2 steps, stage ppo with 3 steps of 2 units (2 prompts each).

#include <map>
#include <string>
#include <vector>

#include "coordinator/ledger.h"
#include "coordinator/plan.h"

namespace cox {

// Version s of ppo is made by step s; `facts` of checkpoints are those of their
// rows.
struct WrittenRun {
  std::string run_dir;
  std::string run_id;
  std::vector<CheckpointRow> checkpoints;
};

// Streaming: step 3 trains on units of rounds 2 and 3, step 2 drops one.
PlanOptions RecordedPlan(ScheduleMode mode);
// `segment_bytes` 1 = every payload in a file of its own.
WrittenRun WriteRecordedRun(const std::string& run_dir, ScheduleMode mode,
                            uint64_t segment_bytes = uint64_t{256} << 20);

// Runs `sql` on the run's ledger, as a tampering hand would.
void Tamper(const std::string& run_dir, const std::string& sql);

}  // namespace cox

#endif  // COX_TESTS_COORDINATOR_RECORDED_RUN_H_
