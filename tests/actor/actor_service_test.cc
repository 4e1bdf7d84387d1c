#include "actor/actor_service.h"

#include <atomic>

#include "cox/v1/reward.grpc.pb.h"
#include "gtest/gtest.h"
#include "lib/base/thread.h"
#include "lib/engine/fake.h"
#include "lib/rpc/status_convert.h"
#include "tests/rpc/fake_coordinator.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::FakeCoordinator;
using ::cox::testing::IsOk;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

// A foreign reward server: total = number of response tokens, part "len";
// reference log-probs -0.5 each.
class FakeReward final : public v1::RewardService::Service,
                         public v1::ReferenceService::Service {
 public:
  FakeReward()
      : server_(*RpcServer::Start(
            {.services = {
                 static_cast<v1::RewardService::Service*>(this),
                 static_cast<v1::ReferenceService::Service*>(this)}})) {}
  const std::string& address() const { return server_->address(); }

  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override {
    ++scores;
    entered.Notify();
    if (hold) release.WaitFor(absl::Seconds(20));
    if (fail_scores-- > 0) return ToGrpc(status);
    for (const auto& sequence : request->sequences()) {
      v1::SequenceScore* score = response->add_scores();
      score->set_scored(true);
      score->set_total(total_bias + sequence.response_ids_size());
      auto* part = score->add_parts();
      part->set_name(request->gold() && request->reward_hash().empty() ? "gold"
                                                                       : "len");
      part->set_value(sequence.response_ids_size());
    }
    return grpc::Status::OK;
  }
  grpc::Status Logprobs(grpc::ServerContext*,
                        const v1::LogprobsRequest* request,
                        v1::LogprobsResponse* response) override {
    for (const auto& sequence : request->sequences()) {
      auto* row = response->add_sequences();
      for (int i = 0; i < sequence.response_ids_size(); ++i) {
        row->add_logprobs(-0.5f);
      }
    }
    return grpc::Status::OK;
  }

  std::atomic<int> scores = 0;
  std::atomic<int> fail_scores = 0;
  absl::Status status = absl::UnavailableError("restarting");
  double total_bias = 0;
  Notification entered;            // a Score call has begun
  std::atomic<bool> hold = false;  // Score waits for `release`
  Notification release;

 private:
  std::unique_ptr<RpcServer> server_;
};

class ActorTest : public ::testing::Test {
 protected:
  ActorTest()
      : weights_(&store_, {.run_id = nullptr, .on_chunk = nullptr}),
        learner_(*RpcServer::Start({.services = {&weights_}})) {
    coordinator_.run.add_eos_ids(0);
    auto* config = coordinator_.run.mutable_config();
    config->set_seed(17);
    config->mutable_generation()->set_max_new_tokens(4);
    config->mutable_generation()->set_temperature(1.0);
    config->mutable_generation()->set_repetition_penalty(1.0);
    config->mutable_generation()->set_top_p(1.0);
    for (uint64_t seed : {1, 2}) {
      versions_.push_back(*FakeSnapshot(FakeModelConfig(7, 8), "policy", seed));
      store_.Put(versions_.back());
    }
    v1::Assignment serve;
    serve.set_kind(v1::Assignment::SERVE);
    coordinator_.SetAssignment(serve);
  }
  ~ActorTest() override {
    reward_.release.Notify();
    for (auto& actor : actors_) actor->Stop();
    threads_.clear();
  }

  Actor& StartActor(FakeCoordinator& coordinator, const std::string& name) {
    ActorOptions options;
    options.coordinator.address = coordinator.address();
    options.coordinator.name = name;
    options.score_patience = score_patience_;
    options.setup_engine = [](const EngineOptions&) {
      return absl::StatusOr<PolicyEngineSet>(PolicyEngineSet{
          .numerics_class = "fake", .engine = MakeFakePolicyEngine()});
    };
    Actor& actor =
        *actors_.emplace_back(std::make_unique<Actor>(std::move(options)));
    threads_.emplace_back("actor", [this, &actor] { result_ = actor.Run(); });
    return actor;
  }
  // Before a coordinator of the test's own goes away.
  void StopActors() {
    for (auto& actor : actors_) actor->Stop();
    JoinActors();
  }
  void JoinActors() {
    for (Thread& thread : threads_) thread.Join();
  }
  v1::LeasedUnit Unit(int64_t step, int32_t index, size_t version) {
    v1::LeasedUnit unit;
    ToProto(UnitId{0, step, index}, unit.mutable_unit());
    unit.set_lease_ms(10000);
    unit.set_samples_per_prompt(2);
    for (int p = 0; p < 2; ++p) {
      auto* row = unit.add_prompts();
      row->set_prompt_id(static_cast<uint64_t>(step * 100 + index * 10 + p));
      row->add_ids(1 + p);
    }
    const Snapshot& snapshot = *versions_[version];
    ToProto(VersionSource{.model = "policy",
                          .version = {0, static_cast<int64_t>(version)},
                          .content_hash = snapshot.content_hash,
                          .manifest = snapshot.manifest.CanonicalText(),
                          .addresses = {learner_->address()}},
            unit.mutable_policy());
    unit.mutable_score()->add_reward_addresses(reward_.address());
    unit.mutable_score()->set_reference_hash("r");
    return unit;
  }
  std::vector<Trajectory> Submitted(const UnitId& unit) {
    return *ParseUnit(coordinator_.submissions().at(unit));
  }

  FakeCoordinator coordinator_;
  FakeReward reward_;
  SnapshotStore store_;
  WeightServiceImpl weights_;
  std::unique_ptr<RpcServer> learner_;
  std::vector<std::shared_ptr<const Snapshot>> versions_;
  absl::Duration score_patience_ = absl::Seconds(10);
  absl::Status result_ = absl::UnknownError("still runs");
  std::vector<std::unique_ptr<Actor>> actors_;
  std::vector<Thread> threads_;
};

TEST_F(ActorTest, SubmitsWhatTheWeightsAndTheKeysDetermine) {
  coordinator_.AddUnit(Unit(1, 0, 0));
  coordinator_.AddUnit(Unit(1, 1, 0));
  coordinator_.AddUnit(Unit(2, 0, 1));  // other weights: a swap
  StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(coordinator_.WaitForSubmissions(3));
  auto engine = MakeFakePolicyEngine();
  ASSERT_OK(engine->Load(versions_[1]));
  UnitWork work;
  work.samples_per_prompt = 2;
  work.prompts = {
      {.prompt_id = 200, .ids = {1}, .instruction_ids = {}, .text = ""},
      {.prompt_id = 201, .ids = {2}, .instruction_ids = {}, .text = ""}};
  UnitSampling sampling;
  sampling.seed = 17;
  sampling.max_new_tokens = 4;
  sampling.sampling.eos_ids = {0};
  ASSERT_OK_AND_ASSIGN(const GenerateResult expected,
                       engine->Generate(MakeGenerateRequest(work, sampling)));
  const auto got = Submitted({0, 2, 0});
  ASSERT_EQ(got.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(got[i].response_ids, expected.tokens[i]);
    EXPECT_EQ(got[i].behaviour_logprobs, expected.logprobs[i]);
    EXPECT_EQ(got[i].policy_hash, versions_[1]->content_hash);
    EXPECT_EQ(got[i].version, (PolicyVersion{0, 1}));
    EXPECT_EQ(got[i].reward_total,
              static_cast<double>(got[i].response_ids.size()));
    EXPECT_EQ(got[i].reward_parts[0].first, "len");
    EXPECT_EQ(got[i].reference_logprobs,
              std::vector<float>(got[i].response_ids.size(), -0.5f));
  }
  EXPECT_TRUE(coordinator_.WaitForHeld(versions_[1]->content_hash));
  // The second registration knows the numerics class and the address.
  EXPECT_EQ(coordinator_.registrations()[1].numerics_class(), "fake");
}

TEST_F(ActorTest, TwoActorsSubmitTheSameBytesAsOne) {
  FakeCoordinator alone;
  alone.run = coordinator_.run;
  v1::Assignment serve;
  serve.set_kind(v1::Assignment::SERVE);
  alone.SetAssignment(serve);
  for (int32_t i = 0; i < 6; ++i) {
    coordinator_.AddUnit(Unit(1, i, 0));
    alone.AddUnit(Unit(1, i, 0));
  }
  StartActor(coordinator_, "actor-0");
  StartActor(coordinator_, "actor-1");
  StartActor(alone, "actor-2");
  ASSERT_TRUE(coordinator_.WaitForSubmissions(6));
  ASSERT_TRUE(alone.WaitForSubmissions(6));
  EXPECT_EQ(coordinator_.submissions(), alone.submissions());
  StopActors();
}

TEST_F(ActorTest, AnActorServesItsWeightsToItsPeers) {
  coordinator_.AddUnit(Unit(1, 0, 0));
  StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(coordinator_.WaitForSubmissions(1));
  v1::LeasedUnit unit = Unit(1, 1, 0);
  learner_->Shutdown(absl::ZeroDuration());
  unit.mutable_policy()->set_addresses(
      0, coordinator_.registrations()[0].address());
  FakeCoordinator other;
  other.run = coordinator_.run;
  v1::Assignment serve;
  serve.set_kind(v1::Assignment::SERVE);
  other.SetAssignment(serve);
  other.AddUnit(unit);
  StartActor(other, "actor-1");
  EXPECT_TRUE(other.WaitForSubmissions(1));
  StopActors();
}

TEST_F(ActorTest, ARewardReplicaThatRestartsIsWaitedForOrReplaced) {
  FakeReward second;
  reward_.fail_scores = 1000000;
  v1::LeasedUnit unit = Unit(1, 0, 0);
  unit.mutable_score()->add_reward_addresses(second.address());
  coordinator_.AddUnit(unit);
  StartActor(coordinator_, "actor-0");
  EXPECT_TRUE(coordinator_.WaitForSubmissions(1));
}

TEST_F(ActorTest, AUnitThatCannotBeScoredIsGivenBackAndTriedAgain) {
  score_patience_ = absl::ZeroDuration();
  reward_.fail_scores = 2;
  coordinator_.AddUnit(Unit(1, 0, 0));
  StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(coordinator_.WaitForSubmissions(1));
  EXPECT_EQ(coordinator_.returned(),
            (std::vector<UnitId>{{0, 1, 0}, {0, 1, 0}}));
}

TEST_F(ActorTest, ReplicasThatAreGoneGiveTheUnitBackAtOnce) {
  score_patience_ = absl::Hours(1);
  v1::LeasedUnit unit = Unit(1, 0, 0);
  unit.mutable_score()->set_reward_addresses(0, FakeReward().address());
  coordinator_.AddUnit(unit);
  StartActor(coordinator_, "actor-0");
  while (coordinator_.returned().empty()) std::this_thread::yield();
  EXPECT_EQ(coordinator_.returned()[0], (UnitId{0, 1, 0}));
  EXPECT_EQ(reward_.scores, 0);
}

TEST_F(ActorTest, SourcesOfWeightsThatAreGoneGiveTheUnitBackAtOnce) {
  score_patience_ = absl::Hours(1);
  v1::LeasedUnit unit = Unit(1, 0, 0);
  unit.mutable_policy()->set_addresses(0, FakeReward().address());
  coordinator_.AddUnit(unit);
  StartActor(coordinator_, "actor-0");
  while (coordinator_.returned().empty()) std::this_thread::yield();
  EXPECT_EQ(coordinator_.returned()[0], (UnitId{0, 1, 0}));
}

TEST_F(ActorTest, WeightsThatNobodyServesGiveTheUnitBack) {
  score_patience_ = absl::ZeroDuration();
  v1::LeasedUnit unit = Unit(1, 0, 0);
  unit.mutable_policy()->set_addresses(0, reward_.address());
  coordinator_.AddUnit(unit);
  StartActor(coordinator_, "actor-0");
  while (coordinator_.returned().empty()) std::this_thread::yield();
  EXPECT_TRUE(coordinator_.submissions().empty());
}

TEST_F(ActorTest, ARewardThatMakesNoSenseEndsTheActor) {
  reward_.total_bias = std::numeric_limits<double>::quiet_NaN();
  coordinator_.AddUnit(Unit(1, 0, 0));
  StartActor(coordinator_, "actor-0");
  JoinActors();
  EXPECT_THAT(result_, StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("scores.total")));
  EXPECT_TRUE(coordinator_.submissions().empty());
}

TEST_F(ActorTest, AForeignServerScoresAndOursAddsTheGoldPart) {
  FakeReward foreign;
  foreign.total_bias = 100;
  v1::LeasedUnit unit = Unit(1, 0, 0);
  unit.mutable_score()->set_address(foreign.address());
  unit.mutable_score()->set_reward_hash("h");
  unit.mutable_score()->set_gold(true);
  coordinator_.AddUnit(unit);
  StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(coordinator_.WaitForSubmissions(1));
  const auto got = Submitted({0, 1, 0});
  EXPECT_GT(*got[0].reward_total, 100.0);
  ASSERT_EQ(got[0].reward_parts.size(), 2u);
  EXPECT_EQ(got[0].reward_parts[0].first, "len");
  EXPECT_EQ(got[0].reward_parts[1].first, "gold");
}

TEST_F(ActorTest, WithoutAPlanNothingIsScored) {
  v1::LeasedUnit unit = Unit(1, 0, 0);
  unit.clear_score();
  coordinator_.AddUnit(unit);
  StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(coordinator_.WaitForSubmissions(1));
  EXPECT_FALSE(Submitted({0, 1, 0})[0].reward_total.has_value());
  EXPECT_EQ(reward_.scores, 0);
}

TEST_F(ActorTest, StopSubmitsWhatIsGeneratedAndLeavesInOrder) {
  reward_.hold = true;
  coordinator_.AddUnit(Unit(1, 0, 0));
  Actor& actor = StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(reward_.entered.WaitFor(absl::Seconds(20)));
  actor.Stop();
  reward_.release.Notify();
  JoinActors();
  EXPECT_THAT(result_, IsOk());
  EXPECT_EQ(coordinator_.submissions().size(), 1u);
  EXPECT_TRUE(coordinator_.drained().contains("actor-0"));
}

TEST_F(ActorTest, ACoordinatorThatRestartsGetsItsUnitsFromTheSameActor) {
  coordinator_.AddUnit(Unit(1, 0, 0));
  StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(coordinator_.WaitForSubmissions(1));
  coordinator_.Restart();
  coordinator_.AddUnit(Unit(1, 1, 0));
  ASSERT_TRUE(coordinator_.WaitForSubmissions(2));
  EXPECT_GE(coordinator_.registrations().size(), 3u);
}

TEST_F(ActorTest, ALostLeaseIsAbandonedAndTheUnitLeasedAgain) {
  reward_.hold = true;
  v1::LeasedUnit unit = Unit(1, 0, 0);
  unit.set_lease_ms(1500);  // renewed every 500 ms
  coordinator_.run.mutable_config()->mutable_limits()->set_lease_s(1.5);
  coordinator_.AddUnit(unit);
  StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(reward_.entered.WaitFor(absl::Seconds(20)));
  const size_t before = coordinator_.callers("RenewLease").size();
  coordinator_.RevokeLeases();
  while (coordinator_.callers("RenewLease").size() < before + 2) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(coordinator_.submissions().empty());
  reward_.release.Notify();
  ASSERT_TRUE(coordinator_.WaitForSubmissions(1));
  EXPECT_EQ(Submitted({0, 1, 0}).size(), 4u);
}

TEST_F(ActorTest, LeavesWhenTheRunIsDone) {
  StartActor(coordinator_, "actor-0");
  ASSERT_TRUE(coordinator_.WaitForRegistrations(2));
  v1::Assignment done;
  done.set_kind(v1::Assignment::DONE);
  coordinator_.SetAssignment(done);
  JoinActors();
  EXPECT_THAT(result_, IsOk());
}

TEST_F(ActorTest, LeavesWhenTheHeartbeatSaysStop) {
  v1::Assignment wait;
  wait.set_kind(v1::Assignment::WAIT);
  coordinator_.SetAssignment(wait);
  coordinator_.RequestStop();
  StartActor(coordinator_, "actor-0");
  JoinActors();
  EXPECT_THAT(result_, IsOk());
  EXPECT_TRUE(coordinator_.drained().contains("actor-0"));
}

}  // namespace
}  // namespace cox
