#ifndef COX_CLI_PLAN_COMPARE_H_
#define COX_CLI_PLAN_COMPARE_H_

// A prediction beside what a run did: `cox plan run.yaml --compare RUN_DIR`.

#include <map>
#include <string>

#include "cli/plan_model.h"
#include "lib/base/fs.h"
#include "lib/base/status.h"

namespace cox {

struct MeasuredRun {
  struct Stage {
    // Median from commit to commit; without first and last step, which also
    // measure held-out data.
    double step_s = 0;
    int64_t steps = 0;
    double answer_tokens = 0;  // mean; 0 = the stage samples none
  };
  std::map<std::string, Stage> stages;
  // Largest private bytes of each process, and of all of them at one time.
  // Empty and 0 without usage.json.
  std::map<std::string, double> private_bytes;
  double peak_private_bytes = 0;
};
// From metrics.jsonl and usage.json. NOT_FOUND, DATA_LOSS: no metrics there.
absl::StatusOr<MeasuredRun> ReadMeasuredRun(Fs& fs, const std::string& run_dir);

// A line for each stage and role: predicted, measured, their ratio.
std::string ComparisonTable(const RunEstimate& run, const RunSizes& sizes,
                            const ClusterSpec& cluster,
                            const MeasuredRun& measured);

}  // namespace cox

#endif  // COX_CLI_PLAN_COMPARE_H_
