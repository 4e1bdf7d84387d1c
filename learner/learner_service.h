#ifndef COX_LEARNER_LEARNER_SERVICE_H_
#define COX_LEARNER_LEARNER_SERVICE_H_

// The process around the trainers: joins the run and its learner group, does
// what the coordinator assigns, serves weights.
//
//   Register -> JoinGroup (a new generation) -> collective -> loop:
//     TRAIN: for each step: TakeBatch (ppo) -> Step -> checkpoint when due
//            -> CommitStep, wait for the answer -> publish (ppo)
//     SERVE: rank 0 publishes what is ordered and serves it
//     DONE / STOP
//
// Rank 0 alone checkpoints, commits and publishes; a broadcast tells the other
// ranks how it went. Steps up to the last committed one are computed again
// after a restart and must meet their recorded hashes (the coordinator
// compares). Any failure of the collective ends the process: it comes back
// with a new generation.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cox/v1/run.pb.h"
#include "learner/checkpoint_writer.h"
#include "learner/lineage_core.h"
#include "learner/stage_service.h"
#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/comm/collective.h"
#include "lib/engine/engine_options.h"
#include "lib/rpc/coordinator_client.h"
#include "lib/rpc/heartbeater.h"
#include "lib/rpc/http_server.h"
#include "lib/rpc/server.h"
#include "lib/rpc/weight_groups.h"
#include "lib/rpc/weight_server.h"

namespace cox {

struct LearnerEngineSet {
  std::function<absl::StatusOr<std::unique_ptr<TrainEngine>>()> make_engine;
  std::string numerics_class;
};

struct LearnerOptions {
  CoordinatorClientOptions coordinator;  // role and rank are set here
  int rank = 0;
  int world_size = 0;  // 0 = roles.learners of the configuration
  std::string bind = "127.0.0.1:0";
  std::string advertise;  // host that others reach; "" = that of `bind`
  std::string http_host = "127.0.0.1";
  int http_port = 0;
  // Address under which rank 0 can be reached by the others.
  std::string rendezvous_host = "127.0.0.1";
  // Called once, after the configuration is known.
  std::function<absl::StatusOr<LearnerEngineSet>(const EngineOptions&)>
      setup_engines;
  // Called once per process when there is more than one rank and they meet
  // over Gloo; over NCCL they meet by MakeNccl().
  std::function<absl::StatusOr<std::unique_ptr<Collective>>(const GlooOptions&)>
      make_group;
  Fs* fs = &Fs::Real();
};

// Run() in one thread; Stop() from any.
class Learner {
 public:
  explicit Learner(LearnerOptions options);
  ~Learner();
  Learner(const Learner&) = delete;
  Learner& operator=(const Learner&) = delete;

  // Blocks until the run is complete: OK. CANCELLED: stopped, resumable (exit
  // 42). Otherwise what failed; DATA_LOSS also when training diverged.
  absl::Status Run();
  // Leaves at the next step border.
  void Stop();

 private:
  struct Stage;  // one TRAIN assignment in progress

  absl::Status Start();
  absl::Status JoinGroup();
  bool SendsOverNccl() const;  // this rank, to actors
  absl::StatusOr<std::unique_ptr<Collective>> Meet(
      const std::string& rendezvous);
  absl::Status FetchTokenizer(const cox::v1::RegisterResponse& run);
  absl::Status Work();

  absl::Status Train(const cox::v1::Assignment& assignment);
  absl::Status Act(Stage* stage, const LineageAction& action);
  absl::Status TrainStep(Stage* stage, int64_t step);
  absl::Status CommitTrained(Stage* stage, const LineageAction& action);
  absl::StatusOr<BatchInput> TakeBatch(Stage* stage, int64_t step);
  absl::Status CheckSameWeights(Stage* stage);

  // Rank 0 only.
  absl::Status CommitOnRankZero(Stage* stage, const LineageAction& action);
  absl::StatusOr<CheckpointJob> CopyForCheckpoint(Stage* stage, int64_t step);
  absl::Status BeginStageCheckpoint(Stage* stage, int64_t step);
  absl::Status FollowCheckpoint(Stage* stage, bool wait);
  absl::Status CommitStageCheckpoint(Stage* stage);
  absl::Status CommitWritten(const CheckpointOutcome& written);
  void CheckpointBeforeLeaving(Stage* stage);
  void SweepStage(int32_t stage);
  absl::Status PublishVersionOf(Stage* stage, int64_t step);
  absl::Status PublishPolicy(Stage* stage, int64_t step,
                             const std::shared_ptr<const Snapshot>& snapshot);
  absl::Status PublishOrders(const cox::v1::Assignment& assignment);
  absl::Status Publish(const std::string& model, const PolicyVersion& version,
                       const std::shared_ptr<const Snapshot>& snapshot,
                       const std::vector<float>& canary = {});

  absl::Status ShareVerdict(const absl::Status& of_rank_zero);
  void KeepOnly(const Stage* stage);
  void LogStep(Stage* stage, int64_t step, const StepResult& result);
  std::string Metrics() const;

  LearnerOptions options_;
  CoordinatorClient client_;
  SnapshotStore store_;
  WeightServiceImpl weight_service_;
  WeightGroups weight_groups_{&store_};  // rank 0, weight_transport nccl
  Notification stop_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Heartbeater> heartbeater_;
  std::unique_ptr<Collective> group_;
  StageContext context_;
  std::string config_hash_;
  int64_t generation_ = 0;
  // Published by this process: what stays in the store, by model and version.
  std::map<std::pair<std::string, PolicyVersion>, std::string> ordered_;
  mutable Mutex mutex_;
  std::map<std::string, double> last_metrics_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cox

#endif  // COX_LEARNER_LEARNER_SERVICE_H_
