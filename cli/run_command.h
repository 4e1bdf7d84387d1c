#ifndef COX_CLI_RUN_COMMAND_H_
#define COX_CLI_RUN_COMMAND_H_

#include <string>
#include <vector>

namespace cox {

struct RunOptions {
  std::string file;                    // run.yaml, or a run directory
  std::vector<std::string> overrides;  // "a.b.c=value"
  int max_restarts = 30;               // per process within ten minutes
  bool quiet = false;                  // no progress lines
  // Folder of `cox certs init`: mutual TLS between all processes; "" = the
  // loopback's plaintext.
  std::string tls_dir;
  // Where the actors look for the coordinator instead of endpoints.json: a
  // file of that form, of a proxy in between (`cox chaos`).
  std::string actor_endpoints;
};

// `cox run`: starts coordinator, actors, reward and learner processes on this
// machine, keeps them alive, shows progress, prints the final table. On a
// directory that holds an unfinished run of the same configuration it resumes.
// Returns the exit code; 42 when stopped by SIGINT or SIGTERM (resumable).
int Run(const RunOptions& options);

}  // namespace cox

#endif  // COX_CLI_RUN_COMMAND_H_
