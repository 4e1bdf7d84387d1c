#ifndef COX_LIB_BASE_PROCESS_H_
#define COX_LIB_BASE_PROCESS_H_

// Signals, child processes, exit codes.

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/status.h"

namespace cox {

// Exit codes of every binary (docs/architecture.md).
inline constexpr int kExitDone = 0;
inline constexpr int kExitCheckFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitRetryable = 42;
inline constexpr int kExitNeedsPerson = 43;

// DATA_LOSS -> 43, INVALID_ARGUMENT / NOT_FOUND -> 2, other errors -> 42.
int ExitCodeFor(const absl::Status& status);

// Installs handlers for SIGTERM and SIGINT that only set a flag, ignores
// SIGPIPE, turns core dumps off, and asks the kernel to kill this process when
// its parent dies (`die_with_parent`).
void InitProcess(bool die_with_parent);
bool ShutdownRequested();  // async-signal-safe flag
bool SignalReceived();     // SIGTERM or SIGINT arrived, truly
void RequestShutdown();    // as if SIGTERM had arrived
// Returns early (true) when shutdown is requested.
bool SleepUnlessShutdown(absl::Duration duration);

struct ChildOptions {
  std::vector<std::string> argv = {};  // argv[0] = path
  std::map<std::string, std::string> extra_env = {};
  std::string log_path = "";  // stdout+stderr appended; "" = inherit
};

struct ChildExit {
  bool exited = false;  // false: still running
  int code = 0;         // exit code, valid if signal == 0
  int signal = 0;
};

// Starts a child in a process group of its own, stdin from /dev/null. The
// kernel kills it when the *thread* that called SpawnChild ends, so call from a
// thread that outlives the child (in practice: main). NOT_FOUND when argv[0]
// does not exist, INTERNAL when it cannot be executed.
absl::StatusOr<pid_t> SpawnChild(const ChildOptions& options);
// Non-blocking. Reaps: once it reported an exit, later calls report code 255.
ChildExit PollChild(pid_t pid);
// Waits up to `timeout`, polling every 10 ms.
ChildExit WaitChild(pid_t pid, absl::Duration timeout);
// To the child's whole process group; a child that is gone is ignored.
void SignalChild(pid_t pid, int signal);

// Folder of the running executable (for finding sibling binaries).
std::string ExecutableDir();

}  // namespace cox

#endif  // COX_LIB_BASE_PROCESS_H_
