#ifndef COX_CLI_METRIC_CHECK_H_
#define COX_CLI_METRIC_CHECK_H_

// `cox explain METRIC --check RUN`: every learning metric is a function of what
// the run recorded; here it is computed again by the code that computed it
// then, and compared with the ledger and with metrics.jsonl.
//
// What rollouts alone determine (objective/scores, rollout/*, async/*, ...)
// and the outputs of collect and eval need no model. The rest needs the
// weights: cox-replay trains the steps again (learner/replay_service.h).

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/ledger_reader.h"
#include "lib/metrics/jsonl.h"

namespace cox {

// Durations, rates, memory, how checkpoints went: facts of one execution, which
// no computation repeats.
bool DependsOnExecution(std::string_view metric);

struct MetricVerdict {
  int64_t steps = 0;      // compared
  int64_t differing = 0;  // beyond the tolerance
  double max_difference = 0;
  std::string first;  // "ppo step 3: ledger 0.5, recomputed 0.25"
};

class MetricComparison {
 public:
  // `only`: the one metric to compare; "" = all. Reads metrics.jsonl of the
  // run; without that file only the ledger is compared.
  static absl::StatusOr<MetricComparison> Create(const RecordedRun& run,
                                                 std::string only,
                                                 double tolerance);

  // Compares one step. Metrics that are not finite are not recorded. Names of
  // `recorded` that `computed` lacks count as differing when `complete`.
  void Compare(int32_t stage, int64_t step, const MetricList& recorded,
               const std::map<std::string, double>& computed, bool complete);

  // Steps that cannot be compared: their payloads are deleted.
  void Retired(int32_t stage, int64_t first, int64_t last);

  const std::map<std::string, MetricVerdict>& verdicts() const {
    return verdicts_;
  }
  bool ok() const;
  // A table, and the line that sums it up; JSON for programs.
  std::string Text() const;
  std::string Json() const;

 private:
  MetricComparison(const RecordedRun& run, std::string only, double tolerance)
      : run_(&run), only_(std::move(only)), tolerance_(tolerance) {}
  void Add(const std::string& where, const std::string& name,
           const char* source, double recorded, double computed);
  const std::map<std::string, double>* Logged(int32_t stage,
                                              int64_t step) const;

  const RecordedRun* run_;
  std::string only_;
  double tolerance_ = 0;
  std::map<std::pair<std::string, int64_t>, std::map<std::string, double>>
      logged_;  // metrics.jsonl
  std::map<std::string, MetricVerdict> verdicts_;
  std::vector<std::string> retired_;  // "ppo steps 1 to 20"
};

struct StepRange {
  int32_t stage = -1;  // -1 = all
  int64_t first = 1;
  int64_t last = INT64_MAX;
  bool Takes(int32_t of_stage, int64_t step) const {
    return (stage < 0 || stage == of_stage) && step >= first && step <= last;
  }
};

// The first step from `first` on that can be computed again: payloads of those
// before are retired, or of steps between them and their checkpoint.
int64_t FirstReplayable(const RecordedRun& run, int32_t stage, int64_t first);

// Metrics of committed ppo steps that need no model.
absl::Status CheckRolloutMetrics(const RecordedRun& run, const StepRange& range,
                                 MetricComparison* comparison);
// Metrics of finished collect and eval stages.
absl::Status CheckOutputMetrics(const RecordedRun& run, const StepRange& range,
                                MetricComparison* comparison);
// What the coordinator adds to a step's metrics from its own rows.
absl::StatusOr<MetricList> RowMetrics(const RecordedRun& run, int32_t stage,
                                      int64_t step);
// Payloads of a step's units in batch order, as a learner takes them.
absl::StatusOr<std::vector<Trajectory>> ReadStepTrajectories(
    const RecordedRun& run, int32_t stage, int64_t step);

}  // namespace cox

#endif  // COX_CLI_METRIC_CHECK_H_
