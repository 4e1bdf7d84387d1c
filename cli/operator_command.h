#ifndef COX_CLI_OPERATOR_COMMAND_H_
#define COX_CLI_OPERATOR_COMMAND_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "lib/rpc/operator_client.h"

namespace cox {

// How a command finds a run: its directory, or an address (then `run_id` too).
struct RunTarget {
  std::string run_dir;
  std::string address;
  std::string run_id;
  std::string tls_dir;  // ca.crt, tls.crt, tls.key of role operator or viewer
};

std::unique_ptr<OperatorClient> ConnectTo(const RunTarget& target);
// Says on stderr why `command` got no answer. Returns the exit code.
int FailUnreachable(std::string_view command, const RunTarget& target,
                    const absl::Status& status);

// Commands that talk to a run's coordinator. Each prints to stdout, errors to
// stderr, and returns the exit code. Results of the last stages can be read
// from the directory after the run has ended; these say so when they need a
// live coordinator.
int ShowStatus(const RunTarget& target);
int ShowStuck(const RunTarget& target);
int ShowEvents(const RunTarget& target, int32_t limit);
int StopRun(const RunTarget& target);
int PauseRun(const RunTarget& target);
int ResumeRun(const RunTarget& target);
// `what` as in "actor=3".
int ScaleRun(const RunTarget& target, const std::string& what);
// Another coefficient of the KL penalty, from a step border on.
int SetKlCoef(const RunTarget& target, double kl_coef);

// `cox samples RUN`: rows of samples.jsonl, newest last.
int ShowSamples(const std::string& run_dir, const std::string& stage,
                int64_t step, int32_t limit);

// `cox logs RUN [NAME]`: the last lines of each role's log.
int ShowLogs(const std::string& run_dir, const std::string& name,
             int32_t lines);

// `cox labels export RUN OUT`, `cox labels import RUN FILE`: the samples that
// wait for people's rankings, and the way back.
int ExportLabels(const std::string& run_dir, const std::string& out);
int ImportLabels(const std::string& run_dir, const std::string& file);

}  // namespace cox

#endif  // COX_CLI_OPERATOR_COMMAND_H_
