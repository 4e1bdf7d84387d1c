// Learners as processes see them, over real gRPC on loopback: a coordinator in
// memory that samples each batch from the weights that the learner serves.

#include "learner/learner_service.h"

#include <set>

#include "cox/v1/checkpoint.grpc.pb.h"
#include "cox/v1/experience.grpc.pb.h"
#include "cox/v1/run.grpc.pb.h"
#include "cox/v1/version.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "lib/base/hash.h"
#include "lib/base/process.h"
#include "lib/base/thread.h"
#include "lib/comm/inprocess.h"
#include "lib/config/config.h"
#include "lib/engine/fake.h"
#include "lib/rpc/status_convert.h"
#include "lib/rpc/weight_fetcher.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr char kRunId[] = "0123456789abcdef0123456789abcdef";

v1::RunConfig PpoConfig() {
  v1::RunConfig config = DefaultConfig();
  config.add_stages("ppo");
  v1::ModelSettings* model = config.mutable_model();
  model->set_hidden(8);
  model->set_layers(1);
  model->set_heads(1);
  model->set_max_positions(16);
  config.mutable_ppo()->set_epochs(2);
  config.mutable_ppo()->mutable_optimizer()->set_lr(0.01);
  config.mutable_checkpoint()->set_every(2);
  return config;
}

// One ppo stage. Keeps what a ledger would keep over restarts of learners.
class FakeRun final : public v1::RunService::Service,
                      public v1::ExperienceService::Service,
                      public v1::VersionService::Service,
                      public v1::CheckpointService::Service {
 public:
  FakeRun(std::string dir, int world, int64_t total_steps)
      : dir_(std::move(dir)), world_(world), total_steps_(total_steps) {
    server_ = *RpcServer::Start(
        {.services = {static_cast<v1::RunService::Service*>(this),
                      static_cast<v1::ExperienceService::Service*>(this),
                      static_cast<v1::VersionService::Service*>(this),
                      static_cast<v1::CheckpointService::Service*>(this)}});
  }
  ~FakeRun() override { server_->Shutdown(absl::Seconds(1)); }
  const std::string& address() const { return server_->address(); }

  grpc::Status Register(grpc::ServerContext*, const v1::RegisterRequest*,
                        v1::RegisterResponse* response) override {
    response->set_epoch(1);
    response->set_run_id(kRunId);
    *response->mutable_config() = config;
    response->set_config_hash("c");
    response->add_eos_ids(0);
    response->set_pad_id(1);
    response->set_vocab_size(7);
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest*,
                         v1::HeartbeatResponse* response) override {
    response->set_epoch(1);
    return grpc::Status::OK;
  }
  grpc::Status Drain(grpc::ServerContext*, const v1::DrainRequest*,
                     v1::DrainResponse*) override {
    return grpc::Status::OK;
  }
  grpc::Status JoinGroup(grpc::ServerContext*,
                         const v1::JoinGroupRequest* request,
                         v1::JoinGroupResponse* response) override {
    MutexLock lock(&mutex_);
    joined_.insert(request->rank());
    if (static_cast<int>(joined_.size()) == world_) {
      ++generation_;
      joined_.clear();
    }
    const int64_t seen = request->caller().generation();
    joined_changed_.NotifyAll();
    response->set_ready(
        joined_changed_.WaitFor(mutex_, absl::Milliseconds(request->wait_ms()),
                                [this, seen]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                                  return generation_ > seen && joined_.empty();
                                }));
    response->set_generation(generation_);
    response->set_rendezvous("127.0.0.1:9");
    return grpc::Status::OK;
  }
  grpc::Status GetAssignment(grpc::ServerContext*,
                             const v1::GetAssignmentRequest*,
                             v1::Assignment* response) override {
    MutexLock lock(&mutex_);
    const int64_t committed = static_cast<int64_t>(commits.size());
    response->set_serial(committed + 1);
    response->set_kind(committed < total_steps_ ? v1::Assignment::TRAIN
                                                : v1::Assignment::DONE);
    response->set_stage_kind("ppo");
    response->set_last_committed(committed);
    response->set_total_steps(total_steps_);
    if (!checkpoints.empty()) {
      *response->mutable_resume() = checkpoints.rbegin()->second;
    }
    v1::PublishOrder* order = response->add_publish();
    order->mutable_ref()->set_model("reference");
    order->mutable_ref()->mutable_version();
    order->set_folder("policy");
    return grpc::Status::OK;
  }

  grpc::Status TakeBatch(
      grpc::ServerContext*, const v1::TakeBatchRequest* request,
      grpc::ServerWriter<v1::TakeBatchResponse>* writer) override {
    MutexLock lock(&mutex_);
    const absl::StatusOr<std::string> payload = Payload(request->step());
    if (!payload.ok()) {
      return ToGrpc(payload.status());
    }
    v1::TakeBatchResponse message;
    message.mutable_header()->mutable_unit()->set_step(request->step());
    message.mutable_header()->set_payload_sha256(Sha256Hex(*payload));
    message.mutable_header()->set_payload_bytes(payload->size());
    *message.mutable_chunk() = MakeChunk(0, *payload);
    message.set_batch_sha256(Sha256Hex("batch" + *payload));
    writer->Write(message);
    return grpc::Status::OK;
  }
  grpc::Status CommitStep(grpc::ServerContext*,
                          const v1::CommitStepRequest* request,
                          v1::CommitStepResponse* response) override {
    MutexLock lock(&mutex_);
    if (request->step() == refuse_step) {
      refuse_step = 0;
      return ToGrpc(WithReason(absl::FailedPreconditionError("old group"),
                               ErrorReason::kStaleGeneration));
    }
    const auto [row, fresh] = commits.try_emplace(request->step(), *request);
    if (!fresh && (row->second.weight_hash() != request->weight_hash() ||
                   row->second.batch_sha256() != request->batch_sha256())) {
      return ToGrpc(absl::DataLossError("replayed with another hash"));
    }
    replayed += fresh ? 0 : 1;
    response->set_replayed(!fresh);
    // Only beside training, in rows of their own.
    EXPECT_FALSE(request->has_checkpoint());
    return grpc::Status::OK;
  }
  grpc::Status PublishVersion(grpc::ServerContext*,
                              const v1::PublishVersionRequest* request,
                              v1::PublishVersionResponse*) override {
    MutexLock lock(&mutex_);
    v1::VersionSource source;
    *source.mutable_ref() = request->ref();
    source.set_manifest(request->manifest());
    source.add_addresses(request->address());
    published[{request->ref().model(), request->ref().version().step()}] =
        source;
    return grpc::Status::OK;
  }
  grpc::Status BeginCheckpoint(grpc::ServerContext*,
                               const v1::BeginCheckpointRequest* request,
                               v1::BeginCheckpointResponse* response) override {
    MutexLock lock(&mutex_);
    response->set_directory(absl::StrCat(dir_, "/ppo/step_00000",
                                         request->step(), ".g", generation_));
    return grpc::Status::OK;
  }
  grpc::Status CommitCheckpoint(
      grpc::ServerContext*, const v1::CommitCheckpointRequest* request,
      v1::CommitCheckpointResponse* response) override {
    MutexLock lock(&mutex_);
    const int64_t step = request->checkpoint().step();
    EXPECT_TRUE(commits.contains(step)) << "row before its step: " << step;
    EXPECT_EQ(request->weight_hash(), commits.at(step).weight_hash());
    checkpointed.push_back(step);
    checkpoints[step] = request->checkpoint();
    if (checkpoints.size() > 1) {
      response->add_delete_directories(checkpoints.begin()->second.directory());
      checkpoints.erase(checkpoints.begin());
    }
    response->add_delete_directories("/not/ours");
    return grpc::Status::OK;
  }

  v1::RunConfig config = PpoConfig();
  int64_t refuse_step = 0;
  int replayed = 0;
  std::map<int64_t, v1::CommitStepRequest> commits;
  std::map<int64_t, v1::CheckpointRef> checkpoints;
  std::vector<int64_t> checkpointed;  // steps, in the order of their rows
  std::map<std::pair<std::string, int64_t>, v1::VersionSource> published;

 private:
  // Stored at the first call: a batch is the same in a replay.
  absl::StatusOr<std::string> Payload(int64_t step)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (batches_.contains(step)) {
      return batches_[step];
    }
    const auto source = published.find({"policy", step - 1});
    if (source == published.end()) {
      return WithReason(absl::UnavailableError("not published yet"),
                        ErrorReason::kNotReady);
    }
    FetchOptions options;
    options.caller.run_id = kRunId;
    COX_ASSIGN_OR_RETURN(const VersionSource from, FromProto(source->second));
    COX_ASSIGN_OR_RETURN(const auto snapshot, FetchSnapshot(from, options));
    std::unique_ptr<PolicyEngine> engine = MakeFakePolicyEngine();
    COX_RETURN_IF_ERROR(engine->Load(snapshot));
    GenerateRequest request;
    request.max_new_tokens = 4;
    request.pad_id = 1;
    request.sampling.eos_ids = {0};
    for (int32_t p = 0; p < 6; ++p) {
      request.prompts.push_back({p + 1});
      request.prompt_ids.push_back(static_cast<uint64_t>(100 * step + p));
      request.sample_indices.push_back(0);
    }
    COX_ASSIGN_OR_RETURN(const GenerateResult result,
                         engine->Generate(request));
    std::vector<Trajectory> rows;
    for (size_t i = 0; i < 6; ++i) {
      Trajectory& row = rows.emplace_back();
      row.id = {{0, step, 0}, static_cast<int32_t>(i), 0};
      row.prompt_ids = request.prompts[i];
      row.response_ids = result.tokens[i];
      row.behaviour_logprobs = result.logprobs[i];
      row.reference_logprobs = result.logprobs[i];
      row.finish = result.finish[i];
      row.reward_total = static_cast<double>(row.response_ids.front());
      row.policy_hash = snapshot->content_hash;
      row.version = {0, step - 1};
    }
    COX_ASSIGN_OR_RETURN(batches_[step], SerializeUnit(rows));
    return batches_[step];
  }

  const std::string dir_;
  const int world_;
  const int64_t total_steps_;
  Mutex mutex_;
  CondVar joined_changed_;
  std::set<int> joined_ ABSL_GUARDED_BY(mutex_);
  int64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int64_t, std::string> batches_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<RpcServer> server_;
};

// Runs a learner group once; the statuses of its ranks.
std::vector<absl::Status> RunGroup(FakeRun& run, int world,
                                   Fs& fs = Fs::Real()) {
  std::vector<std::unique_ptr<Collective>> groups = MakeInProcessGroup(world);
  std::vector<absl::Status> statuses(static_cast<size_t>(world));
  std::vector<Thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back("learner", [&, rank] {
      LearnerOptions options;
      options.coordinator.address = run.address();
      options.coordinator.name = absl::StrCat("learner-", rank);
      options.rank = rank;
      options.world_size = world;
      options.fs = &fs;
      options.setup_engines = [](const EngineOptions&) {
        LearnerEngineSet set;
        set.make_engine = [] { return MakeFakeTrainEngine(); };
        return set;
      };
      options.make_group = [&groups](const GlooOptions& gloo) {
        return std::move(groups[static_cast<size_t>(gloo.rank)]);
      };
      Learner learner(std::move(options));
      statuses[static_cast<size_t>(rank)] = learner.Run();
    });
  }
  threads.clear();
  return statuses;
}

double MetricOf(const v1::CommitStepRequest& commit, const std::string& name) {
  for (const v1::Metric& metric : commit.metrics()) {
    if (metric.name() == name) {
      return metric.value();
    }
  }
  ADD_FAILURE() << "no metric " << name;
  return 0;
}

TEST(LearnerTest, TrainsCommitsCheckpointsAndServes) {
  testing::TempDir dir;
  FakeRun run(dir.path(), /*world=*/2, /*total_steps=*/5);
  for (const absl::Status& status : RunGroup(run, 2)) {
    EXPECT_OK(status);
  }
  ASSERT_EQ(run.commits.size(), 5u);
  for (const auto& [step, commit] : run.commits) {
    // Sampled from the very weights that the learner served.
    EXPECT_LE(MetricOf(commit, "mismatch/max_abs"), 1e-5) << step;
    EXPECT_LE(MetricOf(commit, "policy/first_ratio_error"), 1e-5) << step;
    EXPECT_EQ(commit.caller().generation(), 1);
    if (step < 5) {
      const auto version = run.published.at({"policy", step});
      EXPECT_EQ(version.ref().content_hash(), commit.weight_hash());
    }
  }
  EXPECT_TRUE(run.published.contains({"reference", 0}));
  // The last version is not needed by any unit.
  EXPECT_FALSE(run.published.contains({"policy", 5}));
  EXPECT_THAT(run.checkpointed, ::testing::ElementsAre(2, 4, 5));
  // Older checkpoints were deleted, the newest is whole.
  ASSERT_OK_AND_ASSIGN(const auto names, Fs::Real().List(dir.Join("ppo")));
  EXPECT_THAT(names, ::testing::ElementsAre("step_000005.g1"));
  ASSERT_OK_AND_ASSIGN(
      const CheckpointManifest manifest,
      VerifyCheckpoint(Fs::Real(), dir.Join("ppo/step_000005.g1"),
                       run.checkpoints.at(5).manifest_sha256()));
  EXPECT_EQ(manifest.identity.weight_hash, run.commits.at(5).weight_hash());
}

TEST(LearnerTest, ARestartedGroupReplaysAndEndsWithTheSameWeights) {
  for (const int world : {1, 2}) {
    testing::TempDir dir;
    FakeRun whole(dir.Join("a"), world, 5);
    for (const absl::Status& status : RunGroup(whole, world)) {
      ASSERT_OK(status);
    }
    FakeRun broken(dir.Join("b"), world, 5);
    // Step 3 is committed; the checkpoint of step 2 has its row or not yet;
    // step 4 is lost.
    broken.refuse_step = 4;
    for (const absl::Status& status : RunGroup(broken, world)) {
      EXPECT_THAT(status,
                  testing::StatusIs(absl::StatusCode::kFailedPrecondition));
    }
    ASSERT_EQ(broken.commits.size(), 3u);
    const int kept = broken.checkpoints.contains(2) ? 2 : 0;
    for (const absl::Status& status : RunGroup(broken, world)) {
      EXPECT_OK(status);
    }
    EXPECT_EQ(broken.replayed, 3 - kept);
    ASSERT_EQ(broken.commits.size(), 5u);
    for (int64_t step = 1; step <= 5; ++step) {
      EXPECT_EQ(broken.commits.at(step).weight_hash(),
                whole.commits.at(step).weight_hash())
          << step;
    }
    EXPECT_EQ(broken.commits.at(4).caller().generation(), 2);
  }
}

TEST(LearnerTest, ADamagedCheckpointIsNeverLoaded) {
  testing::TempDir dir;
  FakeRun run(dir.path(), 1, 5);
  // That of step 4 began after that of step 2 had its row.
  run.refuse_step = 5;
  RunGroup(run, 1);
  ASSERT_FALSE(run.checkpoints.empty());
  const std::string file = run.checkpoints.rbegin()->second.directory() +
                           "/critic/model.safetensors";
  ASSERT_OK_AND_ASSIGN(std::string bytes, Fs::Real().ReadAll(file));
  bytes[bytes.size() - 5] = static_cast<char>(bytes[bytes.size() - 5] ^ 4);
  ASSERT_OK(WriteFileDurably(Fs::Real(), file, bytes));
  EXPECT_THAT(
      RunGroup(run, 1)[0],
      testing::StatusIsWith(absl::StatusCode::kDataLoss,
                            ::testing::HasSubstr("critic/model.safetensors")));
}

TEST(LearnerTest, GoesOnWithoutCheckpointsForAsManyStepsAsItMay) {
  FaultFs fs;
  FakeRun run("/checkpoints", 1, 7);
  run.config.mutable_checkpoint()->set_every(1);
  run.config.mutable_checkpoint()->set_max_unsaved_steps(3);
  fs.FailAt(1, absl::ResourceExhaustedError("disk full"), /*sticky=*/true);
  const absl::Status full = RunGroup(run, 1, fs)[0];
  EXPECT_THAT(full, testing::StatusIsWith(
                        absl::StatusCode::kResourceExhausted,
                        ::testing::HasSubstr("max_unsaved_steps: 3")));
  EXPECT_EQ(ExitCodeFor(full), kExitRetryable);
  ASSERT_EQ(run.commits.size(), 4u);
  EXPECT_GE(MetricOf(run.commits.at(4), "checkpoint/failures"), 1);
  EXPECT_EQ(MetricOf(run.commits.at(4), "checkpoint/unsaved_steps"), 4);
  EXPECT_TRUE(run.checkpoints.empty());
  fs.Heal();
  EXPECT_OK(RunGroup(run, 1, fs)[0]);
  EXPECT_EQ(run.replayed, 4);
  ASSERT_EQ(run.commits.size(), 7u);
  EXPECT_OK(VerifyCheckpoint(fs, run.checkpoints.at(7).directory(),
                             run.checkpoints.at(7).manifest_sha256()));
}

TEST(LearnerTest, AFailedCheckpointCostsOnlyItself) {
  FaultFs fs;
  FakeRun run("/checkpoints", 2, 5);
  // In the middle of the files of step 2.
  fs.FailAt(6, absl::ResourceExhaustedError("disk full"));
  for (const absl::Status& status : RunGroup(run, 2, fs)) {
    EXPECT_OK(status);
  }
  EXPECT_THAT(run.checkpointed, ::testing::ElementsAre(4, 5));
  ASSERT_OK_AND_ASSIGN(const auto names, fs.List("/checkpoints/ppo"));
  EXPECT_THAT(names, ::testing::ElementsAre("step_000005.g1"));
}

TEST(LearnerTest, FixedLagKeepsTheWeightsThatOpenUnitsNeed) {
  testing::TempDir dir;
  FakeRun run(dir.path(), 1, 1);
  run.config.mutable_schedule()->set_mode("fixed_lag");
  run.config.mutable_schedule()->set_lag(1);
  EXPECT_OK(RunGroup(run, 1)[0]);
  ASSERT_OK_AND_ASSIGN(
      const auto older,
      LoadModel(Fs::Real(),
                run.checkpoints.at(1).directory() + "/trainer/version_0",
                "policy"));
  EXPECT_EQ(older->content_hash,
            run.published.at({"policy", 0}).ref().content_hash());
}

}  // namespace
}  // namespace cox
