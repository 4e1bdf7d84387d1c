#ifndef COX_CLI_METRIC_COMMAND_H_
#define COX_CLI_METRIC_COMMAND_H_

#include <cstdint>
#include <string>

namespace cox {

struct ExplainOptions {
  std::string metric;  // name or alias; "" = all
  std::string check;   // a run directory whose record is computed again
  std::string stage;
  int64_t step = 0;  // 0 = all
  int64_t to = 0;    // 0 = `step`
  int ranks = 0;     // 0 = those of the run
  double tolerance = 0;
  bool json = false;
};

// `cox explain METRIC`: formula, unit, source and other trainers' names; all
// metrics, a line each, without one. With --check: recomputes it from the run's
// own record and compares. Metrics that need no model are computed here, the
// rest by cox-replay, which takes over this process. Returns the exit code; 1 =
// differs.
int ExplainMetricCommand(const ExplainOptions& options);

}  // namespace cox

#endif  // COX_CLI_METRIC_COMMAND_H_
