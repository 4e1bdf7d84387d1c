// cox-actor: generates rollouts.

#include <string>

#include "actor/actor_service.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/model/api.h"
#include "lib/rpc/role_flags.h"
#include "lib/rpc/tls.h"

namespace cox {
namespace {

absl::StatusOr<PolicyEngineSet> SetupEngine(const EngineOptions& options) {
  PolicyEngineSet set;
  COX_ASSIGN_OR_RETURN(set.numerics_class, InitTorch(options));
  COX_ASSIGN_OR_RETURN(set.engine, MakePolicyEngine(options));
  return set;
}

int Main(int argc, char** argv) {
  absl::StatusOr<RoleFlags> flags =
      ParseRoleFlags("cox-actor", "actor-0", argc, argv);
  if (!flags.ok()) return PrintFlagsStatus(flags.status());
  InitProcess(flags->die_with_parent);
  InitLog(flags->name);
  if (const absl::Status tls = InitProcessTls(flags->tls_dir, "actor");
      !tls.ok()) {
    return PrintFlagsStatus(tls);
  }
  ActorOptions options;
  options.coordinator.address = flags->coordinator;
  options.coordinator.run_id = flags->run_id;
  options.coordinator.name = flags->name;
  options.bind = flags->bind;
  options.advertise = flags->advertise;
  options.http_host = flags->http_host;
  options.http_port = flags->http_port;
  options.setup_engine = SetupEngine;
  Actor actor(std::move(options));
  const absl::Status status = RunUntilSignal([&actor] { return actor.Run(); },
                                             [&actor] { actor.Stop(); });
  if (status.ok()) return EndOfRun(*flags);
  LogError("actor failed", {{"error", status.ToString()}});
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) { return cox::Main(argc, argv); }
