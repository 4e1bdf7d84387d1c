// cox-reward: serves reward model, reference policy and rule rewards.

#include <string>

#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/model/api.h"
#include "lib/rpc/role_flags.h"
#include "lib/rpc/tls.h"
#include "reward/replica_service.h"

namespace cox {
namespace {

absl::StatusOr<ScoreEngineSet> SetupEngines(const EngineOptions& options) {
  ScoreEngineSet set;
  COX_ASSIGN_OR_RETURN(set.numerics_class, InitTorch(options));
  set.make = [options] { return MakeScoreEngine(options); };
  return set;
}

int Main(int argc, char** argv) {
  absl::StatusOr<RoleFlags> flags =
      ParseRoleFlags("cox-reward", "reward-0", argc, argv);
  if (!flags.ok()) return PrintFlagsStatus(flags.status());
  InitProcess(flags->die_with_parent);
  InitLog(flags->name);
  if (const absl::Status tls = InitProcessTls(flags->tls_dir, "reward");
      !tls.ok()) {
    return PrintFlagsStatus(tls);
  }
  RewardReplicaOptions options;
  options.coordinator.address = flags->coordinator;
  options.coordinator.run_id = flags->run_id;
  options.coordinator.name = flags->name;
  options.bind = flags->bind;
  options.advertise = flags->advertise;
  options.http_host = flags->http_host;
  options.http_port = flags->http_port;
  options.setup_engines = SetupEngines;
  RewardReplica replica(std::move(options));
  const absl::Status status = RunUntilSignal(
      [&replica] { return replica.Run(); }, [&replica] { replica.Stop(); });
  if (status.ok()) return EndOfRun(*flags);
  LogError("reward replica failed", {{"error", status.ToString()}});
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) { return cox::Main(argc, argv); }
