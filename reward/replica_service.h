#ifndef COX_REWARD_REPLICA_SERVICE_H_
#define COX_REWARD_REPLICA_SERVICE_H_

// The life of one reward process: serve, register, hold the models of its
// assignment, leave in order.

#include <functional>
#include <memory>
#include <string>

#include "lib/base/status.h"
#include "lib/base/sync.h"
#include "lib/engine/engine.h"
#include "lib/engine/engine_options.h"
#include "lib/rpc/coordinator_client.h"
#include "lib/rpc/heartbeater.h"
#include "lib/rpc/http_server.h"
#include "lib/rpc/server.h"
#include "lib/rpc/weight_server.h"
#include "reward/reward_service.h"

namespace cox {

struct ScoreEngineSet {
  std::string numerics_class;
  EngineDriver::EngineFactory make;
};

struct RewardReplicaOptions {
  CoordinatorClientOptions coordinator;  // role and own_address are set here
  std::string bind = "127.0.0.1:0";
  std::string advertise;  // host that others reach; "" = that of `bind`
  std::string http_host = "127.0.0.1";
  int http_port = 0;
  size_t queue_capacity = 1024;  // requests that may wait
  // Called once, when the run's configuration is known.
  std::function<absl::StatusOr<ScoreEngineSet>(const EngineOptions&)>
      setup_engines;
};

// Run() is called once; Stop() from any thread, any time.
class RewardReplica {
 public:
  explicit RewardReplica(RewardReplicaOptions options);
  ~RewardReplica();
  RewardReplica(const RewardReplica&) = delete;
  RewardReplica& operator=(const RewardReplica&) = delete;

  // Blocks until the run is done, the coordinator says stop, or Stop(): OK
  // then, after open calls were answered and the coordinator was told. Errors
  // are final (ExitCodeFor).
  absl::Status Run();
  void Stop();

 private:
  absl::Status Start();
  absl::Status Serve();
  absl::Status HoldModels(const cox::v1::Assignment& assignment);
  absl::Status HoldModel(const VersionSource& source);
  void Leave();
  std::string Metrics() const;

  const RewardReplicaOptions options_;
  CoordinatorClient client_;
  Notification stop_;
  SnapshotStore store_;
  RewardBackendHolder backend_;
  RewardServiceImpl reward_service_{&backend_};
  ReferenceServiceImpl reference_service_{&backend_};
  WeightServiceImpl weight_service_;
  std::unique_ptr<EngineDriver> driver_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Heartbeater> heartbeater_;
};

}  // namespace cox

#endif  // COX_REWARD_REPLICA_SERVICE_H_
