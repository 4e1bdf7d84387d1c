#ifndef COX_CLI_METRIC_COMMAND_H_
#define COX_CLI_METRIC_COMMAND_H_

#include <string>

namespace cox {

// `cox explain METRIC`: formula, unit, source and other trainers' names; all
// metrics, a line each, when `name` is empty. Returns the exit code.
int ExplainMetricCommand(const std::string& name);

}  // namespace cox

#endif  // COX_CLI_METRIC_COMMAND_H_
