#include "reward/replica_service.h"

#include "cox/v1/reward.grpc.pb.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/base/thread.h"
#include "lib/engine/fake.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/status_convert.h"
#include "reward/sequence_batch.h"
#include "tests/rpc/fake_coordinator.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::FakeCoordinator;
using ::cox::testing::IsOk;
using ::cox::testing::kFakeRunId;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

// A reward replica with fake engines, its coordinator and a learner that
// serves models.
class ReplicaTest : public ::testing::Test {
 protected:
  ReplicaTest()
      : weights_(&store_, {.run_id = nullptr, .on_chunk = nullptr}),
        learner_(*RpcServer::Start({.services = {&weights_}})) {
    coordinator_.run.mutable_config()->mutable_reward()->set_kind("rm");
  }
  ~ReplicaTest() override {
    if (replica_ != nullptr) replica_->Stop();
    thread_.Join();
  }

  void StartReplica() {
    RewardReplicaOptions options;
    options.coordinator.address = coordinator_.address();
    options.coordinator.name = "reward-0";
    options.setup_engines = [](const EngineOptions&) {
      return ScoreEngineSet{
          .numerics_class = "fake", .make = [] {
            return absl::StatusOr<std::unique_ptr<ScoreEngine>>(
                MakeFakePolicyEngine());
          }};
    };
    replica_ = std::make_unique<RewardReplica>(std::move(options));
    thread_ = Thread("replica", [this] { result_ = replica_->Run(); });
    // The second registration carries the class of the engines.
    ASSERT_TRUE(coordinator_.WaitForRegistrations(2));
    address_ = coordinator_.registrations()[1].address();
  }
  void Publish(std::vector<std::shared_ptr<const Snapshot>> models) {
    v1::Assignment assignment;
    assignment.set_kind(v1::Assignment::SERVE);
    for (const auto& model : models) {
      store_.Put(model);
      ToProto(VersionSource{.model = model->manifest.model,
                            .version = {0, 0},
                            .content_hash = model->content_hash,
                            .manifest = model->manifest.CanonicalText(),
                            .addresses = {learner_->address()}},
              assignment.add_models());
    }
    coordinator_.SetAssignment(assignment);
  }
  void Limit(grpc::ClientContext* context, int ms = 20000) {
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::milliseconds(ms));
  }
  v1::ScoreRequest Request() {
    v1::ScoreRequest request;
    request.mutable_caller()->set_run_id(kFakeRunId);
    auto* sequence = request.add_sequences();
    for (int id : {1, 2}) sequence->add_prompt_ids(id);
    for (int id : {3, 4}) sequence->add_response_ids(id);
    return request;
  }
  // Retries while the replica is still starting.
  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request,
                                          int ms = 20000) {
    auto stub = v1::RewardService::NewStub(*MakeChannel(address_));
    while (true) {
      grpc::ClientContext context;
      Limit(&context, ms);
      v1::ScoreResponse response;
      const absl::Status status =
          FromGrpc(stub->Score(&context, request, &response));
      if (status.ok()) return response;
      if (!absl::IsUnavailable(status)) return status;
    }
  }

  FakeCoordinator coordinator_;
  SnapshotStore store_;
  WeightServiceImpl weights_;
  std::unique_ptr<RpcServer> learner_;
  std::unique_ptr<RewardReplica> replica_;
  std::string address_;
  absl::Status result_ = absl::UnknownError("still runs");
  Thread thread_;
};

TEST_F(ReplicaTest, ScoresWithTheModelThatIsNamedOnceItArrives) {
  auto reward =
      *FakeSnapshot(FakeModelConfig(9, 4, HeadKind::kScalar), "reward", 1);
  auto newer =
      *FakeSnapshot(FakeModelConfig(9, 4, HeadKind::kScalar), "reward", 2);
  auto reference = *FakeSnapshot(FakeModelConfig(9, 4), "reference", 3);
  StartReplica();
  Publish({reward, reference});
  v1::ScoreRequest request = Request();
  request.set_reward_hash(reward->content_hash);
  ASSERT_OK_AND_ASSIGN(const auto first, Score(request));
  EXPECT_EQ(first.reward_hash(), reward->content_hash);
  ASSERT_EQ(first.scores_size(), 1);
  EXPECT_TRUE(first.scores(0).scored());

  auto engine = MakeFakePolicyEngine();
  ASSERT_OK(engine->Load(reward));
  ScoreInput input;
  input.prompt_ids = {1, 2};
  input.response_ids = {3, 4};
  const auto batch = *MakeSequenceBatch(std::span(&input, 1));
  EXPECT_EQ(first.scores(0).total(), double{(*engine->Scores(batch))[0]});

  // Asked before it is there: the answer waits for the weights.
  request.set_reward_hash(newer->content_hash);
  absl::StatusOr<v1::ScoreResponse> second = absl::UnknownError("");
  {
    Thread caller("caller", [&] { second = Score(request); });
    Publish({newer, reference});
  }
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_NE(second->scores(0).total(), first.scores(0).total());

  // The old one is gone.
  request.set_reward_hash(reward->content_hash);
  EXPECT_THAT(Score(request, /*ms=*/2000),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr(newer->content_hash)));
}

TEST_F(ReplicaTest, ReferenceLogprobsAnswerPerToken) {
  auto reference = *FakeSnapshot(FakeModelConfig(9, 4), "reference", 3);
  StartReplica();
  Publish({reference});
  ASSERT_TRUE(coordinator_.WaitForHeld(reference->content_hash));
  v1::LogprobsRequest request;
  request.mutable_caller()->set_run_id(kFakeRunId);
  request.set_reference_hash(reference->content_hash);
  request.set_temperature(1.0);
  *request.add_sequences() = Request().sequences(0);
  auto stub = v1::ReferenceService::NewStub(*MakeChannel(address_));
  const auto call = [&](v1::LogprobsResponse* response) {
    grpc::ClientContext context;
    Limit(&context);
    return FromGrpc(stub->Logprobs(&context, request, response));
  };
  v1::LogprobsResponse response;
  ASSERT_OK(call(&response));
  ASSERT_EQ(response.sequences(0).logprobs_size(), 2);
  EXPECT_LT(response.sequences(0).logprobs(0), 0.0f);
  request.set_temperature(0);
  EXPECT_THAT(call(&response), StatusIs(absl::StatusCode::kInvalidArgument,
                                        HasSubstr("temperature")));
  request.set_temperature(1);
  request.mutable_sequences(0)->set_response_ids(0, 9);  // vocabulary 9
  EXPECT_THAT(call(&response), StatusIs(absl::StatusCode::kInvalidArgument));
  request.clear_reference_hash();
  EXPECT_THAT(call(&response), StatusIs(absl::StatusCode::kInvalidArgument,
                                        HasSubstr("reference_hash")));
}

TEST_F(ReplicaTest, TableRewardNeedsNoModel) {
  testing::TempDir dir;
  const std::string path = dir.Join("table.json");
  ASSERT_OK(WriteFileDurably(
      Fs::Real(), path, R"({"entries":[{"response":[3,4],"reward":0.5}]})"));
  auto* reward = coordinator_.run.mutable_config()->mutable_reward();
  reward->set_kind("table");
  reward->set_path(path);
  StartReplica();
  v1::ScoreRequest request = Request();
  *request.add_sequences() = request.sequences(0);
  request.mutable_sequences(1)->add_response_ids(5);
  ASSERT_OK_AND_ASSIGN(const auto response, Score(request));
  EXPECT_EQ(response.scores(0).total(), 0.5);
  EXPECT_FALSE(response.scores(1).scored());
}

TEST_F(ReplicaTest, StrangersAndCallsWithoutDeadlineAreRefused) {
  testing::TempDir dir;
  StartReplica();
  v1::ScoreRequest request = Request();
  request.mutable_caller()->set_run_id("another");
  EXPECT_THAT(Score(request), StatusIs(absl::StatusCode::kPermissionDenied));
  auto stub = v1::RewardService::NewStub(*MakeChannel(address_));
  grpc::ClientContext context;
  v1::ScoreResponse response;
  EXPECT_THAT(
      FromGrpc(stub->Score(&context, Request(), &response)),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("deadline")));
}

TEST_F(ReplicaTest, LeavesWhenTheRunIsDoneAndTellsTheCoordinator) {
  StartReplica();
  v1::Assignment done;
  done.set_kind(v1::Assignment::DONE);
  coordinator_.SetAssignment(done);
  thread_.Join();
  EXPECT_THAT(result_, IsOk());
  EXPECT_TRUE(coordinator_.drained().contains("reward-0"));
}

TEST_F(ReplicaTest, StopEndsItCleanly) {
  StartReplica();
  replica_->Stop();
  thread_.Join();
  EXPECT_THAT(result_, IsOk());
}

TEST_F(ReplicaTest, ABadTableEndsTheProcessWithItsPath) {
  auto* reward = coordinator_.run.mutable_config()->mutable_reward();
  reward->set_kind("table");
  reward->set_path("/nonexistent/table.json");
  StartReplica();
  thread_.Join();
  EXPECT_THAT(result_,
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("table.json")));
}

}  // namespace
}  // namespace cox
