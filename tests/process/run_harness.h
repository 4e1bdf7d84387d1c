#ifndef COX_TESTS_PROCESS_RUN_HARNESS_H_
#define COX_TESTS_PROCESS_RUN_HARNESS_H_

// Starts real `cox run` processes on small configurations and reads what they
// leave behind.

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace cox {

struct RunResult {
  int exit_code = -1;
  int signal = 0;
  std::string output;  // stdout and stderr of `cox run`
};

// A run that is going on. Killed when dropped.
class RunningRun {
 public:
  // `arguments` after "cox"; output goes to `log`.
  RunningRun(const std::vector<std::string>& arguments, std::string log);
  // The same of another binary of this build.
  struct Program {
    explicit Program(std::string n) : name(std::move(n)) {}
    std::string name;
  };
  RunningRun(const Program& program, const std::vector<std::string>& arguments,
             std::string log);
  ~RunningRun();
  RunningRun(const RunningRun&) = delete;
  RunningRun& operator=(const RunningRun&) = delete;
  pid_t pid() const { return pid_; }
  // Waits for the end; fails the test when `limit` passes.
  RunResult Wait(absl::Duration limit = absl::Minutes(4));

 private:
  pid_t pid_ = 0;
  std::string log_;
};

// `cox ARGUMENTS` to its end.
RunResult Cox(const std::vector<std::string>& arguments,
              const std::string& scratch,
              absl::Duration limit = absl::Minutes(4));

// Polls `condition` until it holds; false after `limit`.
bool Eventually(const std::function<bool()>& condition,
                absl::Duration limit = absl::Minutes(2));

// "<weight hash> <batch hash>" of every committed step, "stage/step" -> value.
std::map<std::string, std::string> CommittedSteps(const std::string& run_dir);
// Unit -> SHA-256 of its payload.
std::map<std::string, std::string> UnitHashes(const std::string& run_dir);

// "kind: text" of every event in the ledger, one a line.
std::string LedgerEvents(const std::string& run_dir);

// pid of a role's process, found by its `--name NAME` argument and this run's
// directory; 0 = none.
pid_t FindProcess(const std::string& run_dir, const std::string& name);

// A four-token task with a table reward: ppo only, seconds long. Returns the
// YAML's path in `dir`.
std::string WriteTableTask(const std::string& dir,
                           const std::string& extra_yaml = "");
// pretrain, sft, collect, rm, ppo, eval on the example's text, a few steps
// each.
std::string WriteMiniRecipe(const std::string& dir,
                            const std::string& extra_yaml = "");

}  // namespace cox

#endif  // COX_TESTS_PROCESS_RUN_HARNESS_H_
