// Units that two actors compute, units that kill their actors, connections
// that break.

#include <memory>
#include <string>

#include "coordinator/core.h"
#include "coordinator/memory_ledger.h"
#include "gmock/gmock.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class CoreAuditTest : public ::testing::Test {
 protected:
  CoreAuditTest() {
    StagePlan stage;
    stage.kind = StageKind::kPpo;
    stage.total_steps = 3;
    stage.prompt_count = 2;
    stage.prompts_per_step = 2;
    stage.unit_prompts = 2;  // one unit a step
    plan_.stages = {stage};
    options_.audit_fraction = 1;
    options_.poison_after = 2;
  }

  void Open() {
    ledger_ = OpenMemoryLedger(&disk_);
    auto plan = RunPlan::Create(plan_);
    ASSERT_OK(plan.status());
    auto core = CoordinatorCore::Create(options_, *plan, disk_.state,
                                        ledger_->epoch(), now_);
    ASSERT_OK(core.status());
    core_ = *std::move(core);
    Register("l0", "learner");
    const auto joined = core_->Join({Caller("l0", "learner"), 0, 1, "l0:9"});
    ASSERT_OK(joined.status());
    Register("r0", "reward");
    for (const char* model : {"policy", "reference"}) {
      ASSERT_OK(
          core_->Publish({Caller("l0", "learner", joined->generation.value),
                          {model, {0, 0}, Hash(model), ""},
                          "127.0.0.1:1"}));
    }
    ASSERT_OK(core_->ReportHeld(Caller("r0", "reward"), {Hash("reference")},
                                "127.0.0.1:2"));
    Commit();
  }
  static std::string Hash(const std::string& of) { return "hash of " + of; }
  void Commit() { ASSERT_OK(ledger_->Commit(core_->TakeRows())); }
  void Pass(absl::Duration time) {
    for (absl::Duration t; t < time; t += absl::Milliseconds(250)) {
      now_ = now_ + absl::Milliseconds(250);
      core_->AdvanceTo(now_, 0);
      core_->Tick();
    }
  }
  CoreCaller Caller(const std::string& session, const std::string& role,
                    int64_t generation = 0) {
    return {session, role, session, core_->epoch().value, generation};
  }
  CoreCaller Actor(const std::string& session) {
    return Caller(session, "actor");
  }
  void Register(const std::string& session, const std::string& role) {
    ASSERT_OK(core_->Register({Caller(session, role), "127.0.0.1:3", "", 0}));
  }
  size_t Lease(const std::string& session) {
    auto grants = core_->Lease(Actor(session), 1);
    EXPECT_TRUE(grants.ok()) << grants.status();
    return grants.ok() ? grants->size() : 0;
  }
  absl::StatusOr<SubmitResult> Submit(const std::string& session,
                                      const std::string& result) {
    SubmitEvent event;
    event.caller = Actor(session);
    event.unit = {0, 1, 0};
    event.policy_hash = Hash("policy");
    event.payload_sha256 = result;
    event.payload = {1, 0, 10};
    return core_->Submit(event);
  }
  void PassAlone(absl::Duration time) {  // only "a" is heard of
    for (absl::Duration t; t < time; t += absl::Seconds(2)) {
      Pass(absl::Seconds(2));
      ASSERT_OK(core_->Renew(Actor("a"), {}).status());
    }
  }
  std::string Recorded() {
    const std::vector<UnitRow> rows = core_->SubmittedUnits(1);
    return rows.empty() ? "" : rows.front().sha256;
  }
  std::string Events() {
    std::string text;
    for (const EventRow& event : core_->events()) {
      text += event.kind + ": " + event.text + "\n";
    }
    return text;
  }

  CoreOptions options_;
  PlanOptions plan_;
  MemoryDisk disk_;
  std::unique_ptr<LedgerStore> ledger_;
  std::unique_ptr<CoordinatorCore> core_;
  MonoTime now_{1};
};

TEST_F(CoreAuditTest, TwoActorsMustAgreeBeforeAUnitCounts) {
  Open();
  Register("a", "actor");
  Register("b", "actor");
  ASSERT_EQ(Lease("a"), 1u);
  ASSERT_OK(Submit("a", "x").status());
  EXPECT_EQ(Recorded(), "") << "one opinion is not enough";
  EXPECT_EQ(Lease("a"), 0u) << "not twice by the same";
  ASSERT_EQ(Lease("b"), 1u);
  ASSERT_OK(Submit("b", "x").status());
  EXPECT_EQ(Recorded(), "x");
  EXPECT_OK(core_->CheckInvariants());
}

TEST_F(CoreAuditTest, AThirdOneSettlesAndTheLiarIsShutOut) {
  for (const char* honest_first : {"yes", "no"}) {
    disk_ = MemoryDisk();
    Open();
    const bool first = honest_first == std::string("yes");
    for (const char* name : {"a", "b", "c"}) Register(name, "actor");
    ASSERT_EQ(Lease("a"), 1u);
    ASSERT_OK(Submit("a", first ? "right" : "wrong").status());
    ASSERT_EQ(Lease("b"), 1u);
    ASSERT_OK(Submit("b", first ? "wrong" : "right").status());
    EXPECT_EQ(Recorded(), "");
    ASSERT_EQ(Lease("c"), 1u);
    ASSERT_OK(Submit("c", "right").status());
    EXPECT_EQ(Recorded(), "right");
    const std::string liar = first ? "b" : "a";
    EXPECT_THAT(Events(), HasSubstr("quarantine: unit s0.1.0: two actors "
                                    "computed right, " +
                                    liar + " wrong"));
    EXPECT_THAT(core_->Lease(Actor(liar), 1).status(),
                StatusIs(absl::StatusCode::kPermissionDenied));
    EXPECT_THAT(core_->Lease(Actor("c"), 1).status(),
                StatusIs(absl::StatusCode::kOk));
    EXPECT_OK(core_->CheckInvariants());
  }
}

TEST_F(CoreAuditTest, TheLastVoteMayBeTheWrongOne) {
  Open();
  for (const char* name : {"a", "b", "c"}) Register(name, "actor");
  ASSERT_EQ(Lease("a"), 1u);
  ASSERT_OK(Submit("a", "wrong").status());
  ASSERT_EQ(Lease("b"), 1u);
  ASSERT_OK(Submit("b", "right").status());
  ASSERT_EQ(Lease("c"), 1u);
  ASSERT_OK(Submit("c", "other").status());
  EXPECT_EQ(Recorded(), "") << "three opinions";
  Register("d", "actor");
  ASSERT_EQ(Lease("d"), 1u);
  ASSERT_OK(Submit("d", "right").status());
  EXPECT_EQ(Recorded(), "right");
  EXPECT_THAT(Submit("a", "wrong").status(),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST_F(CoreAuditTest, AloneNobodyWaitsForEver) {
  Open();
  Register("a", "actor");
  ASSERT_EQ(Lease("a"), 1u);
  ASSERT_OK(Submit("a", "x").status());
  // Others may not have found this coordinator yet.
  PassAlone(absl::Seconds(20));
  EXPECT_EQ(Recorded(), "");
  PassAlone(absl::Seconds(12));
  EXPECT_EQ(Recorded(), "x");
  // The other one goes away while the unit waits for it.
  disk_ = MemoryDisk();
  Open();
  Register("a", "actor");
  Register("b", "actor");
  ASSERT_EQ(Lease("a"), 1u);
  ASSERT_OK(Submit("a", "x").status());
  ASSERT_OK(core_->Drain(Actor("b"), "leaving"));
  Pass(absl::Seconds(1));
  EXPECT_EQ(Recorded(), "");
  PassAlone(absl::Seconds(32));
  EXPECT_EQ(Recorded(), "x");
  EXPECT_OK(core_->CheckInvariants());
}

TEST_F(CoreAuditTest, ADisagreementThatNobodySettlesEndsTheRun) {
  Open();
  Register("a", "actor");
  Register("b", "actor");
  ASSERT_EQ(Lease("a"), 1u);
  ASSERT_OK(Submit("a", "x").status());
  ASSERT_EQ(Lease("b"), 1u);
  ASSERT_OK(Submit("b", "y").status());
  for (int i = 0; i < 40; ++i) {
    Pass(absl::Seconds(2));
    ASSERT_OK(core_->Renew(Actor("a"), {}).status());
    ASSERT_OK(core_->Renew(Actor("b"), {}).status());
  }
  EXPECT_THAT(core_->Status().failure, HasSubstr("no other actor"));
  EXPECT_EQ(core_->Status().failure_exit_code, 43);
}

TEST_F(CoreAuditTest, ARestartForgetsWhatWasNotConfirmed) {
  Open();
  Register("a", "actor");
  Register("b", "actor");
  ASSERT_EQ(Lease("a"), 1u);
  ASSERT_OK(Submit("a", "x").status());
  Commit();
  EXPECT_THAT(disk_.state.units, IsEmpty());
  Open();
  Register("a", "actor");
  Register("b", "actor");
  EXPECT_EQ(Lease("a"), 1u);
}

TEST_F(CoreAuditTest, OnlyTheShareIsAuditedAndAlwaysTheSame) {
  options_.audit_fraction = 0;
  Open();
  Register("a", "actor");
  Register("b", "actor");
  ASSERT_EQ(Lease("a"), 1u);
  ASSERT_OK(Submit("a", "x").status());
  EXPECT_EQ(Recorded(), "x");
}

TEST_F(CoreAuditTest, AUnitWhoseActorsDieIsLeasedAlone) {
  plan_.stages[0].prompt_count = 4;
  plan_.stages[0].prompts_per_step = 4;  // two units
  options_.audit_fraction = 0;
  Open();
  for (const std::string name : {"a", "b"}) {
    Register(name, "actor");
    ASSERT_EQ(Lease(name), 1u);
    Pass(options_.suspect + absl::Seconds(1));
    // The others were heard of meanwhile.
    ASSERT_OK(core_->ReportHeld(Caller("l0", "learner"),
                                {Hash("policy"), Hash("reference")}, ""));
    ASSERT_OK(
        core_->ReportHeld(Caller("r0", "reward"), {Hash("reference")}, ""));
  }
  EXPECT_THAT(Events(), HasSubstr("unit suspect: unit s0.1.0"));
  Register("c", "actor");
  auto both = core_->Lease(Actor("c"), 2);
  ASSERT_OK(both.status());
  EXPECT_THAT(*both, SizeIs(1)) << "the suspect unit alone";
}

TEST_F(CoreAuditTest, ABrokenConnectionIsNoticedWithinASecond) {
  options_.audit_fraction = 0;
  Open();
  Register("a", "actor");
  Register("b", "actor");
  ASSERT_EQ(Lease("a"), 1u);
  core_->CallerGone("a");
  Pass(absl::Milliseconds(1000));
  EXPECT_THAT(Events(), HasSubstr("session lost: a"));
  EXPECT_EQ(Lease("b"), 1u);
  // Whoever calls again in time is not lost.
  core_->CallerGone("b");
  ASSERT_OK(core_->Renew(Actor("b"), {{0, 1, 0}}).status());
  Pass(absl::Milliseconds(1000));
  EXPECT_THAT(Events(), ::testing::Not(HasSubstr("session lost: b")));
}

TEST_F(CoreAuditTest, CanariesReachThoseWhoFetch) {
  options_.audit_fraction = 0;
  Open();
  ASSERT_OK(core_->Publish({Caller("l0", "learner", 1),
                            {"policy", {0, 0}, Hash("policy"), ""},
                            "127.0.0.1:1",
                            {-1.5f}}));
  Register("a", "actor");
  auto grants = core_->Lease(Actor("a"), 1);
  ASSERT_OK(grants.status());
  ASSERT_THAT(*grants, SizeIs(1));
  EXPECT_THAT(grants->front().policy.canary, ::testing::ElementsAre(-1.5f));
}

TEST_F(CoreAuditTest, WeightGroupsAreOfferedWhileTheirPublisherIsInTheGroup) {
  options_.audit_fraction = 0;
  Open();
  const auto publish = [&](const std::string& address) {
    PublishEvent event;
    event.caller = Caller("l0", "learner", core_->generation().value);
    event.version = {"policy", {0, 0}, Hash("policy"), ""};
    event.address = "127.0.0.1:1";
    event.group_address = address;
    ASSERT_OK(core_->Publish(event));
  };
  publish("127.0.0.1:7");
  Register("a", "actor");
  Register("b", "actor");
  auto source = core_->Target("policy");
  ASSERT_TRUE(source.has_value());
  EXPECT_EQ(source->group_address, "127.0.0.1:7");
  EXPECT_EQ(source->group_generation, 1);
  EXPECT_EQ(source->live_actors, 2);
  // The learners meet again: who published before may be anybody now.
  ASSERT_OK(core_->Join({Caller("l0", "learner", 1), 0, 1, "l0:10"}).status());
  ASSERT_EQ(core_->generation().value, 2);
  EXPECT_EQ(core_->Target("policy")->group_address, "");
  publish("127.0.0.1:8");
  EXPECT_EQ(core_->Target("policy")->group_generation, 2);
  Pass(absl::Seconds(30));  // silent: dead
  EXPECT_EQ(core_->Target("policy")->group_address, "");
}

}  // namespace
}  // namespace cox
