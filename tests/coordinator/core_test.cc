#include "coordinator/core.h"

#include "coordinator/left_out.h"
#include "coordinator/memory_ledger.h"
#include "gmock/gmock.h"
#include "lib/rpc/error_reason.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class CoreTest : public ::testing::Test {
 protected:
  CoreTest() { options_.world_size = 2; }

  void Open(std::vector<StagePlan> stages) {
    PlanOptions plan;
    plan.stages = std::move(stages);
    plan_ = plan;
    Reopen();
  }
  void Reopen() {
    ledger_ = OpenMemoryLedger(&disk_);
    auto plan = RunPlan::Create(plan_);
    ASSERT_OK(plan.status());
    auto core = CoordinatorCore::Create(options_, *plan, RecentRows(*plan),
                                        ledger_->epoch(), now_);
    ASSERT_OK(core.status());
    core_ = *std::move(core);
    Commit();
  }
  LedgerState RecentRows(const RunPlan& plan) const {
    return LeaveOut(
        disk_.state,
        {.keep_steps = plan.schedule().StepsKept(options_.history_steps)});
  }
  void Commit() { ASSERT_OK(ledger_->Commit(core_->TakeRows())); }
  void Pass(absl::Duration time) {
    // In the shell's ticks: a longer gap is the coordinator's own stall.
    for (absl::Duration t; t < time; t += absl::Milliseconds(500)) {
      now_ = now_ + absl::Milliseconds(500);
      core_->AdvanceTo(now_, 0);
      core_->Tick();
    }
  }
  static StagePlan Sft(int64_t steps) {
    StagePlan stage;
    stage.kind = StageKind::kSft;
    stage.total_steps = steps;
    return stage;
  }
  static StagePlan Ppo() {
    StagePlan stage;
    stage.kind = StageKind::kPpo;
    stage.total_steps = 3;
    stage.prompt_count = 4;
    stage.prompts_per_step = 4;
    stage.unit_prompts = 2;
    return stage;
  }
  CoreCaller Caller(const std::string& session, const std::string& role,
                    int64_t generation = 0) {
    return {session, role, session, core_->epoch().value, generation};
  }
  void Register(const std::string& session, const std::string& role,
                int32_t rank = 0, int64_t generation = 0) {
    ASSERT_OK(core_->Register(
        {Caller(session, role, generation), "127.0.0.1:1", "", rank}));
  }
  absl::StatusOr<JoinReply> Join(const std::string& session, int32_t rank,
                                 int64_t generation = 0) {
    return core_->Join(
        {Caller(session, "learner", generation), rank, 2, session + ":9"});
  }
  void FormGroup() {
    Register("l0", "learner", 0);
    Register("l1", "learner", 1);
    ASSERT_OK(Join("l0", 0).status());
    ASSERT_OK(Join("l1", 1).status());
    Commit();
  }
  CommitStepEvent Step(const std::string& session, int64_t generation,
                       int64_t step) {
    CommitStepEvent event;
    event.caller = Caller(session, "learner", generation);
    event.step = step;
    event.batch_sha256 = absl::StrCat("batch ", step);
    event.weight_hash = absl::StrCat("weights ", step);
    return event;
  }
  void Publish(const std::string& model, const std::string& hash) {
    ASSERT_OK(core_->Publish({Caller("l0", "learner", 1),
                              {model, {0, 0}, hash, ""},
                              "127.0.0.1:1"}));
  }

  CoreOptions options_;
  PlanOptions plan_;
  MemoryDisk disk_;
  std::unique_ptr<LedgerStore> ledger_;
  std::unique_ptr<CoordinatorCore> core_;
  MonoTime now_{1};
};

TEST_F(CoreTest, AGroupStartsWhenAllRanksHaveAsked) {
  Open({Sft(3)});
  Register("l0", "learner", 0);
  Register("l1", "learner", 1);
  ASSERT_OK_AND_ASSIGN(JoinReply first, Join("l0", 0));
  EXPECT_FALSE(first.ready);
  ASSERT_OK_AND_ASSIGN(JoinReply second, Join("l1", 1));
  EXPECT_TRUE(second.ready);
  EXPECT_EQ(second.generation.value, 1);
  EXPECT_EQ(second.rendezvous, "l0:9");
  // Rank 0 asks again and gets the same group; so does a lost reply.
  ASSERT_OK_AND_ASSIGN(first, Join("l0", 0));
  EXPECT_EQ(first.generation.value, 1);
  ASSERT_OK_AND_ASSIGN(second, Join("l1", 1));
  EXPECT_EQ(second.generation.value, 1);
  Commit();
  EXPECT_EQ(disk_.state.generation.value, 1);
}

TEST_F(CoreTest, ARankThatComesBackFencesTheOldGroup) {
  Open({Sft(3)});
  FormGroup();
  ASSERT_OK(core_->CommitStep(Step("l0", 1, 1)).status());
  Register("l1b", "learner", 1);
  ASSERT_OK(Join("l1b", 1).status());
  const absl::Status fenced = core_->CommitStep(Step("l0", 1, 2)).status();
  EXPECT_THAT(fenced, StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(ReasonOf(fenced), ErrorReason::kStaleGeneration);
  Register("l0b", "learner", 0);
  ASSERT_OK_AND_ASSIGN(JoinReply joined, Join("l0b", 0));
  EXPECT_EQ(joined.generation.value, 2);
  EXPECT_THAT(core_->CommitStep(Step("l0", 1, 2)).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK(core_->CommitStep(Step("l0b", 2, 2)).status());
}

TEST_F(CoreTest, AGroupSurvivesARestartOfTheCoordinator) {
  Open({Sft(3)});
  FormGroup();
  ASSERT_OK(core_->CommitStep(Step("l0", 1, 1)).status());
  Commit();
  const CoreCaller old = Caller("l0", "learner", 1);
  Reopen();
  const absl::Status unknown = core_->GetAssignment(old).status();
  EXPECT_EQ(ReasonOf(unknown), ErrorReason::kUnknownSession);
  Register("l0", "learner", 0, /*generation=*/1);
  EXPECT_EQ(ReasonOf(core_->GetAssignment(old).status()),
            ErrorReason::kStaleEpoch);
  ASSERT_OK_AND_ASSIGN(bool replayed, core_->CommitStep(Step("l0", 1, 1)));
  EXPECT_TRUE(replayed);
  ASSERT_OK_AND_ASSIGN(replayed, core_->CommitStep(Step("l0", 1, 2)));
  EXPECT_FALSE(replayed);
}

TEST_F(CoreTest, ACommitIsACompareAndSet) {
  Open({Sft(3)});
  FormGroup();
  EXPECT_THAT(core_->CommitStep(Step("l0", 1, 2)).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK(core_->CommitStep(Step("l0", 1, 1)).status());
  CommitStepEvent other = Step("l1", 1, 1);
  other.weight_hash = "other weights";
  EXPECT_THAT(core_->CommitStep(other).status(),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(core_->Status().failure_exit_code, 43);
}

TEST_F(CoreTest, AStageEndsWithItsLastCheckpoint) {
  Open({Sft(2), Sft(1)});
  FormGroup();
  ASSERT_OK(core_->CommitStep(Step("l0", 1, 1)).status());
  ASSERT_OK(core_->CommitStep(Step("l0", 1, 2)).status());
  const auto complete = [this] {
    int count = 0;
    for (const Effect& effect : core_->TakeEffects()) {
      count += effect.kind == Effect::Kind::kStageComplete ? 1 : 0;
    }
    return count;
  };
  EXPECT_EQ(complete(), 0);
  CommitCheckpointEvent event;
  event.caller = Caller("l0", "learner", 1);
  event.checkpoint = {2, "/c/step_2", "manifest", "state"};
  event.weight_hash = "weights 2";
  ASSERT_OK(core_->CommitCheckpoint(event).status());
  EXPECT_EQ(complete(), 1);
  core_->FinishStage(0, {}, 0);
  ASSERT_OK_AND_ASSIGN(AssignmentData a,
                       core_->GetAssignment(Caller("l0", "learner", 1)));
  EXPECT_EQ(a.stage, 1);
  EXPECT_EQ(a.kind, AssignmentKind::kTrain);
  ASSERT_TRUE(a.policy.has_value());
  EXPECT_EQ(a.policy->directory, "/c/step_2");
}

TEST_F(CoreTest, OldCheckpointsGoByRow) {
  Open({Sft(5)});
  FormGroup();
  std::vector<std::string> removed;
  for (int64_t step = 1; step <= 3; ++step) {
    ASSERT_OK(core_->CommitStep(Step("l0", 1, step)).status());
    CommitCheckpointEvent event;
    event.caller = Caller("l0", "learner", 1);
    event.checkpoint = {step, absl::StrCat("/c/", step), "manifest", "state"};
    event.weight_hash = absl::StrCat("weights ", step);
    ASSERT_OK_AND_ASSIGN(removed, core_->CommitCheckpoint(event));
  }
  EXPECT_THAT(removed, ElementsAre("/c/1"));
  EXPECT_THAT(core_->LatestCheckpoints(0), SizeIs(2));
  // Weights that are not the committed ones make no checkpoint.
  CommitCheckpointEvent wrong;
  wrong.caller = Caller("l0", "learner", 1);
  wrong.checkpoint = {3, "/c/3", "manifest", "state"};
  wrong.weight_hash = "other weights";
  EXPECT_THAT(core_->CommitCheckpoint(wrong).status(),
              StatusIs(absl::StatusCode::kDataLoss));
}

// A long run: memory holds what a restart may ask for, the ledger everything.
TEST_F(CoreTest, ForgetsStepsThatNoRestartCanNeed) {
  options_.history_steps = 2;
  StagePlan stage = Ppo();
  stage.total_steps = 8;
  Open({stage});
  FormGroup();
  Publish("policy", "weights 0");
  Publish("reference", "r0");
  Register("reward", "reward");
  Register("a0", "actor");
  ASSERT_OK(core_->ReportHeld(Caller("reward", "reward"), {"r0"}, ""));
  const auto submit = [this](const UnitId& unit) {
    return core_->Submit({Caller("a0", "actor"),
                          unit,
                          absl::StrCat("weights ", unit.step - 1),
                          unit.ToString(),
                          unit.step - 1,
                          {}});
  };
  const CoreCaller learner = Caller("l0", "learner", 1);
  const auto commit = [&](int64_t step, const std::string& batch,
                          bool checkpoint) {
    CommitStepEvent event = Step("l0", 1, step);
    event.batch_sha256 = batch;
    event.metrics = {{"objective/scores", 1.0}};
    if (checkpoint) {
      event.checkpoint = {step, absl::StrCat("/c/", step), "manifest", "state"};
    }
    return core_->CommitStep(event);
  };
  std::vector<std::string> batches = {""};
  for (int64_t step = 1; step <= 7; ++step) {
    ASSERT_OK(core_->ReportHeld(
        learner, {absl::StrCat("weights ", step - 1), "r0"}, ""));
    ASSERT_OK_AND_ASSIGN(auto grants, core_->Lease(Caller("a0", "actor"), 8));
    ASSERT_THAT(grants, SizeIs(2));
    for (const LeaseGrant& grant : grants) ASSERT_OK(submit(grant.unit));
    ASSERT_OK_AND_ASSIGN(const auto batch, core_->TakeBatch(learner, 0, step));
    ASSERT_TRUE(batch.has_value());
    batches.push_back(batch->batch_sha256);
    // Checkpoints of steps 2, 4 and 6.
    ASSERT_OK(commit(step, batches.back(), step % 2 == 0).status());
    ASSERT_OK(core_->Publish(
        {learner,
         {"policy", {0, step}, absl::StrCat("weights ", step), ""},
         "127.0.0.1:1"}));
    ASSERT_OK(core_->CheckInvariants());
    Commit();
  }
  // A restart resumes at step 4 or 6: of 1 to 3 only the count is left.
  for (int round = 0; round < 2; ++round) {
    for (int64_t step = 1; step <= 7; ++step) {
      EXPECT_THAT(core_->SubmittedUnits(step), SizeIs(step <= 3 ? 0 : 2))
          << step;
      // Of step 2 a checkpoint is there.
      EXPECT_EQ(core_->Steps(0).contains(step), step > 3 || step == 2) << step;
    }
    EXPECT_EQ(core_->committed(), 7);
    EXPECT_EQ(core_->Status().units_submitted, 0);
    EXPECT_OK(core_->CheckInvariants());
    EXPECT_THAT(disk_.state.units, SizeIs(14));
    EXPECT_EQ(disk_.state.steps[0].weight_hash, "weights 1");
    Reopen();  // and the same again after recovery
    Register("a0", "actor");
    Register("l0", "learner", 0, /*generation=*/1);
    Register("l1", "learner", 1, /*generation=*/1);
  }
  const CoreCaller again = Caller("l0", "learner", 1);
  EXPECT_THAT(submit({0, 2, 1}),
              testing::IsOkAndHolds(SubmitResult::kAlreadyConsumed));
  EXPECT_THAT(submit({0, 5, 1}),
              testing::IsOkAndHolds(SubmitResult::kDuplicate));
  EXPECT_THAT(core_->TakeBatch(again, 0, 3).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_OK(core_->TakeBatch(again, 0, 5).status());
  EXPECT_THAT(commit(3, batches[3], false).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(commit(5, batches[5], false), testing::IsOkAndHolds(true));
  EXPECT_EQ(core_->Status().failure_exit_code, 0);
}

TEST_F(CoreTest, LeasesExpireWithTimeAndWithTheirSession) {
  Open({Ppo()});
  FormGroup();
  Publish("policy", "p0");
  Publish("reference", "r0");
  Register("reward", "reward");
  Register("a0", "actor");
  Register("a1", "actor");
  // Nobody can score yet.
  ASSERT_OK_AND_ASSIGN(auto grants, core_->Lease(Caller("a0", "actor"), 8));
  EXPECT_THAT(grants, IsEmpty());
  ASSERT_OK(core_->ReportHeld(Caller("reward", "reward"), {"r0"}, ""));
  ASSERT_OK_AND_ASSIGN(grants, core_->Lease(Caller("a0", "actor"), 8));
  ASSERT_THAT(grants, SizeIs(2));  // step 1 only: version 1 does not exist
  EXPECT_EQ(grants[0].policy.version.content_hash, "p0");
  EXPECT_THAT(grants[0].score.reward_addresses, ElementsAre("127.0.0.1:1"));
  EXPECT_EQ(grants[0].lease, absl::Seconds(10));
  ASSERT_OK(core_->Renew(Caller("a0", "actor"), {grants[0].unit}).status());
  ASSERT_OK_AND_ASSIGN(auto none, core_->Lease(Caller("a1", "actor"), 8));
  EXPECT_THAT(none, IsEmpty());
  // a0 falls silent, the others keep talking.
  for (int i = 0; i < 7; ++i) {
    Pass(absl::Seconds(1));
    for (const char* role : {"actor", "reward"}) {
      HeartbeatEvent beat;
      beat.caller =
          Caller(role == std::string("actor") ? "a1" : "reward", role);
      beat.held = {"r0"};
      ASSERT_OK(core_->Heartbeat(beat).status());
    }
    ASSERT_OK(core_->ReportHeld(Caller("l0", "learner", 1), {"p0", "r0"}, ""));
  }
  ASSERT_OK_AND_ASSIGN(grants, core_->Lease(Caller("a1", "actor"), 8));
  ASSERT_THAT(grants, SizeIs(2));
  EXPECT_EQ(grants[0].attempt, 2);
  // The late one has lost its lease but its work is as good as any.
  SubmitEvent late{Caller("a0", "actor"), grants[0].unit, "p0", "hash", 0, {}};
  EXPECT_THAT(core_->Submit(late),
              testing::IsOkAndHolds(SubmitResult::kAccepted));
  EXPECT_THAT(core_->Submit(late),
              testing::IsOkAndHolds(SubmitResult::kDuplicate));
  late.payload_sha256 = "another hash";
  EXPECT_THAT(core_->Submit(late).status(),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(core_->CheckInvariants());
}

TEST_F(CoreTest, ARestartedProcessReplacesTheAddressOfItsName) {
  Open({Ppo()});
  FormGroup();
  Publish("policy", "p0");
  Publish("reference", "r0");
  Register("a0", "actor");
  const auto start = [this](const std::string& session,
                            const std::string& address) {
    CoreCaller caller = Caller(session, "reward");
    caller.name = "reward-0";
    ASSERT_OK(core_->Register({caller, address, "", 0}));
    ASSERT_OK(core_->ReportHeld(caller, {"r0"}, ""));
  };
  start("first", "127.0.0.1:2");
  start("second", "127.0.0.1:3");
  ASSERT_OK_AND_ASSIGN(auto grants, core_->Lease(Caller("a0", "actor"), 1));
  ASSERT_THAT(grants, SizeIs(1));
  EXPECT_THAT(grants[0].score.reward_addresses, ElementsAre("127.0.0.1:3"));
  // It lives after all: two processes of one name.
  HeartbeatEvent beat;
  beat.caller = Caller("first", "reward");
  beat.held = {"r0"};
  ASSERT_OK(core_->Heartbeat(beat).status());
  ASSERT_OK_AND_ASSIGN(grants, core_->Lease(Caller("a0", "actor"), 1));
  ASSERT_THAT(grants, SizeIs(1));
  EXPECT_THAT(grants[0].score.reward_addresses,
              ElementsAre("127.0.0.1:2", "127.0.0.1:3"));
  // Another role's process of that name is somebody else.
  CoreCaller other = Caller("a1", "actor");
  other.name = "reward-0";
  ASSERT_OK(core_->Register({other, "127.0.0.1:4", "", 0}));
  ASSERT_OK_AND_ASSIGN(const auto third, core_->Lease(other, 1));
  EXPECT_THAT(third, IsEmpty());
  EXPECT_OK(core_->CheckInvariants());
}

TEST_F(CoreTest, ItsOwnStallIsNobodysSilence) {
  Open({Sft(1)});
  Register("a0", "actor");
  now_ = now_ + absl::Minutes(5);
  core_->AdvanceTo(now_, 0);
  core_->Tick();
  EXPECT_EQ(core_->live_sessions(), 1);
  Pass(absl::Seconds(7));
  EXPECT_EQ(core_->live_sessions(), 0);
}

TEST_F(CoreTest, TheSerialChangesOnlyWithTheWork) {
  Open({Sft(2), Ppo()});
  FormGroup();
  const CoreCaller caller = Caller("l0", "learner", 1);
  ASSERT_OK_AND_ASSIGN(AssignmentData before, core_->GetAssignment(caller));
  ASSERT_OK(core_->CommitStep(Step("l0", 1, 1)).status());
  ASSERT_OK_AND_ASSIGN(AssignmentData same, core_->GetAssignment(caller));
  EXPECT_EQ(before.serial, same.serial);
  EXPECT_EQ(same.last_committed, 1);
  core_->Control(ControlCommand::kStop);
  ASSERT_OK_AND_ASSIGN(AssignmentData stop, core_->GetAssignment(caller));
  EXPECT_EQ(stop.kind, AssignmentKind::kStop);
  EXPECT_NE(stop.serial, before.serial);
}

}  // namespace
}  // namespace cox
