#ifndef COX_CLI_WATCH_COMMAND_H_
#define COX_CLI_WATCH_COMMAND_H_

// Commands that go on until Ctrl-C: `cox top` and `cox logs -f`.

#include <cstdint>
#include <map>
#include <string>

#include "cli/operator_command.h"
#include "cox/v1/monitor.pb.h"

namespace cox {

struct TopOptions {
  RunTarget target;
  double every_s = 1;
  int64_t count = 0;  // screens, then it ends; 0 = until Ctrl-C
};

// One screen, lines separated by '\n'. `before` is what the coordinator said
// `seconds` ago, for rates; null = nothing yet.
std::string TopScreen(const cox::v1::StatusResponse& now,
                      const cox::v1::StatusResponse* before, double seconds);

// `cox top RUN`: the screen again and again, in place on a terminal. Ends with
// the run.
int Top(const TopOptions& options);

// `cox logs -f RUN [NAME]`: the last lines, then what is appended to the logs,
// those of processes that start later included.
int FollowLogs(const std::string& run_dir, const std::string& name,
               int32_t lines);

// What was appended to files of a folder since the last call.
// Thread-compatible.
class LogFollower {
 public:
  // `name` "" = every *.log of `dir`.
  LogFollower(std::string dir, std::string name);
  // Starts behind what is there now.
  void SkipAll();
  // New whole lines, "name: line\n" each; with one name only "line\n".
  std::string Poll();

 private:
  const std::string dir_;
  const std::string name_;
  std::map<std::string, uint64_t> read_;  // bytes, by file
};

}  // namespace cox

#endif  // COX_CLI_WATCH_COMMAND_H_
