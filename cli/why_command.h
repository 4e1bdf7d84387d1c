#ifndef COX_CLI_WHY_COMMAND_H_
#define COX_CLI_WHY_COMMAND_H_

#include <string>

namespace cox {

// `cox why RUN --sample ID`: where one answer comes from and where it went.
// `id` is a TrajectoryId ("s4.12.3/5.0", as in samples.jsonl) or a unit
// ("s4.12.3", then its answers are listed). Returns the exit code; 2 when the
// run has no such answer.
int ExplainSample(const std::string& run_dir, const std::string& id, bool json);

}  // namespace cox

#endif  // COX_CLI_WHY_COMMAND_H_
