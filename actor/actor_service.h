#ifndef COX_ACTOR_ACTOR_SERVICE_H_
#define COX_ACTOR_ACTOR_SERVICE_H_

// The life of one actor process: lease, get weights, generate, have scored,
// submit; serve the weights it holds to its peers.
//
// Threads: Run()'s own (owns the engine), "scorer" (one unit at a time:
// scores, submits), "renewer" (leases), "assignment", the heartbeat and those
// of gRPC. A unit is generated while the one before it is being scored.

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actor/actor_core.h"
#include "actor/reward_client.h"
#include "actor/unit_work.h"
#include "cox/v1/rollout.pb.h"
#include "cox/v1/run.pb.h"
#include "lib/base/status.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"
#include "lib/data/tokenizer.h"
#include "lib/engine/engine.h"
#include "lib/engine/engine_options.h"
#include "lib/rpc/coordinator_client.h"
#include "lib/rpc/heartbeater.h"
#include "lib/rpc/http_server.h"
#include "lib/rpc/server.h"
#include "lib/rpc/weight_server.h"

namespace cox {

struct PolicyEngineSet {
  std::string numerics_class;
  std::unique_ptr<PolicyEngine> engine;
};

struct ActorOptions {
  CoordinatorClientOptions coordinator;  // role and own_address are set here
  std::string bind = "127.0.0.1:0";
  std::string advertise;  // host that others reach; "" = that of `bind`
  std::string http_host = "127.0.0.1";
  int http_port = 0;
  absl::Duration lease_wait = absl::Seconds(5);  // of one long poll
  absl::Duration score_patience = absl::Seconds(15);
  // Finished units may still be submitted for this long after Stop().
  absl::Duration flush = absl::Seconds(5);
  // Called once in Run()'s thread, when the configuration is known.
  std::function<absl::StatusOr<PolicyEngineSet>(const EngineOptions&)>
      setup_engine;
};

// Run() is called once; Stop() from any thread, any time.
class Actor {
 public:
  explicit Actor(ActorOptions options);
  ~Actor();
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;

  // Blocks until the run is done, the coordinator says stop, or Stop(): OK
  // then, with finished units submitted and the other leases given back.
  // Errors are final (ExitCodeFor).
  absl::Status Run();
  void Stop();

 private:
  // A generated unit on its way.
  struct Finished {
    LocalLease lease = 0;
    cox::v1::LeasedUnit source;
    UnitWork work;
    std::vector<Trajectory> trajectories;
    // Its result cannot be scored or was refused: the unit's own fault, which
    // the coordinator counts.
    bool refused = false;
  };

  absl::Status Start();
  absl::Status FetchTokenizer(const cox::v1::RegisterResponse& run);
  absl::Status Work();
  absl::Status LeaseUnits(int max_units);
  // Returns units whose weights cannot be had; other errors are final.
  absl::Status Swap(LocalLease lease);
  absl::Status LoadWeights(const VersionSource& source);
  // Over NCCL where that is wished and offered, else and after any error of
  // it over gRPC.
  absl::StatusOr<std::shared_ptr<const Snapshot>> FetchWeights(
      const VersionSource& source);
  // Hashes the weights in the engine and compares the canary, if one is known.
  // UNAVAILABLE when they are not what they should be: they are dropped and
  // the coordinator is told. INTERNAL when that happens again and again.
  absl::Status Attest(const std::vector<float>& canary);
  absl::Status Generate(LocalLease lease);
  void ScoreLoop();
  absl::Status ScoreAndSubmit(Finished* unit);
  absl::Status DescribeForScoring(Finished* unit, ScoringWork* work) const;
  // Replicas may have moved since the unit was leased.
  void UseNewestReplicas(cox::v1::ScorePlan* plan) const;
  void RenewLoop();
  void AssignmentLoop();
  void GiveBack(LocalLease lease, const UnitId& unit, const absl::Status& why);
  void Leave();
  void Fail(const absl::Status& status);
  bool Holds(LocalLease lease) const;
  bool GiveUp(LocalLease lease) const;  // lost, or leaving and out of time
  std::string Metrics() const;

  const ActorOptions options_;
  CoordinatorClient client_;
  Notification stop_;
  SnapshotStore store_;
  WeightServiceImpl weight_service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Heartbeater> heartbeater_;
  std::unique_ptr<RewardClient> rewards_;

  // Constant after Start().
  UnitSampling sampling_;
  absl::Duration lease_wait_;
  std::optional<absl::Duration> weight_group_timeout_;  // weights over NCCL
  std::shared_ptr<const Tokenizer> tokenizer_;          // null: no text
  std::unique_ptr<PolicyEngine> engine_;                // Run()'s thread

  std::string held_hash_;      // Run()'s thread; in `engine_`
  std::string previous_hash_;  // Run()'s thread
  // Run()'s thread: what the engine computes with, and when it was last found
  // to be what its manifest says.
  std::shared_ptr<const Snapshot> loaded_;
  MonoTime attested_;
  float canary_bound_ = 0;
  int damaged_ = 0;

  mutable Mutex mutex_;
  CondVar changed_;
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  ActorCore core_ ABSL_GUARDED_BY(mutex_){ActorCoreOptions{}};
  std::map<LocalLease, cox::v1::LeasedUnit> sources_ ABSL_GUARDED_BY(mutex_);
  cox::v1::ScorePlan newest_plan_ ABSL_GUARDED_BY(mutex_);
  std::deque<Finished> to_score_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;  // no further units come
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::optional<MonoTime> stopped_at_ ABSL_GUARDED_BY(mutex_);

  std::atomic<uint64_t> units_submitted_{0};
  std::atomic<uint64_t> units_given_back_{0};
  std::atomic<uint64_t> tokens_generated_{0};
  std::atomic<uint64_t> swaps_{0};
  std::atomic<uint64_t> fetched_over_nccl_{0};
  std::atomic<uint64_t> fetched_over_grpc_{0};

  Thread scorer_;
  Thread renewer_;
  Thread assignment_;
};

}  // namespace cox

#endif  // COX_ACTOR_ACTOR_SERVICE_H_
