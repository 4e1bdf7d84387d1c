#ifndef COX_LIB_RPC_ROLE_FLAGS_H_
#define COX_LIB_RPC_ROLE_FLAGS_H_

// Command line of the processes that follow a coordinator.

#include <functional>
#include <string>
#include <string_view>

#include "lib/base/status.h"

namespace cox {

struct RoleFlags {
  std::string coordinator;  // --coordinator HOST:PORT or file:PATH
  std::string run_id;       // --run-id ID; "" = learn it
  std::string name;         // --name actor-0
  std::string bind;         // --bind HOST (127.0.0.1) and --port N (0)
  std::string advertise;    // --advertise HOST that others reach; "" = bind's
  std::string http_host = "127.0.0.1";  // --http-host HOST
  int http_port = 0;                    // --http-port N
  std::string tls_dir;                  // --tls DIR; "" = COX_TLS_DIR or none
  bool stay = false;                    // --stay; see EndOfRun()
  bool die_with_parent = false;         // --die-with-parent
};

// "--flag value" and "--flag=value". INVALID_ARGUMENT names the flag;
// CANCELLED with the usage text for --help.
absl::StatusOr<RoleFlags> ParseRoleFlags(std::string_view program,
                                         std::string_view default_name,
                                         int argc, const char* const* argv);

// `run()` of a role's process in this thread; `stop()` is called once from
// another thread, on SIGTERM or SIGINT or when run() has returned, and must end
// run(). Shutdown order: the signal stops intake, run() finishes or returns
// what is open, then the signal thread ends and the caller may destroy all.
absl::Status RunUntilSignal(const std::function<absl::Status()>& run,
                            const std::function<void()>& stop);

// What a role returns when its run is done. With --stay it first waits for
// SIGTERM and answers its probes meanwhile, because a pod of a Deployment that
// ends is started again.
int EndOfRun(const RoleFlags& flags);

// Prints what ParseRoleFlags said; returns the exit code, 0 for --help.
int PrintFlagsStatus(const absl::Status& status);

}  // namespace cox

#endif  // COX_LIB_RPC_ROLE_FLAGS_H_
