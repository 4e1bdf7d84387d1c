// Units that kill their actors or that nobody can make a result of, and runs
// that are meant to have one actor.

#include <memory>
#include <string>

#include "coordinator/core.h"
#include "coordinator/memory_ledger.h"
#include "gmock/gmock.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class FailedUnitsTest : public ::testing::Test {
 protected:
  FailedUnitsTest() {
    StagePlan stage;
    stage.kind = StageKind::kPpo;
    stage.total_steps = 2;
    stage.prompt_count = 8;
    stage.prompts_per_step = 8;
    stage.unit_prompts = 1;  // eight units a step
    plan_.stages = {stage};
    options_.give_up_after = 3;
  }
  void Open() {
    ledger_ = OpenMemoryLedger(&disk_);
    auto plan = RunPlan::Create(plan_);
    ASSERT_OK(plan.status());
    auto core = CoordinatorCore::Create(options_, *plan, disk_.state,
                                        ledger_->epoch(), MonoTime{1});
    ASSERT_OK(core.status());
    core_ = *std::move(core);
    for (const char* role : {"learner", "reward", "actor"}) {
      ASSERT_OK(core_->Register({Caller(role, role), "127.0.0.1:3", "", 0}));
    }
    ASSERT_OK(
        core_->Join({Caller("learner", "learner"), 0, 1, "l:9"}).status());
    for (const char* model : {"policy", "reference"}) {
      ASSERT_OK(core_->Publish(
          {Caller("learner", "learner"), {model, {0, 0}, model, ""}, "l:1"}));
    }
    ASSERT_OK(
        core_->ReportHeld(Caller("reward", "reward"), {"reference"}, "r:1"));
    Commit();
  }
  void Commit() { ASSERT_OK(ledger_->Commit(core_->TakeRows())); }
  CoreCaller Caller(const std::string& session, const std::string& role) {
    return {session, role, role, core_->epoch().value,
            role == "learner" ? core_->generation().value : 0};
  }
  UnitId Lease(const std::string& session) {
    const auto grants = core_->Lease(Caller(session, "actor"), 1);
    return grants.ok() && !grants->empty() ? grants->front().unit
                                           : UnitId{-1, 0, 0};
  }
  // Its actor takes the first open unit and dies of it.
  UnitId Die() {
    const std::string session = absl::StrCat("a", ++actors_);
    EXPECT_OK(core_->Register({Caller(session, "actor"), "", "", 0}));
    const UnitId unit = Lease(session);
    // The supervisor starts it again under its name.
    const std::string next = absl::StrCat("a", ++actors_);
    EXPECT_OK(core_->Register({Caller(next, "actor"), "", "", 0}));
    return unit;
  }
  // As CoreTurn does.
  int StorePlaceholders() {
    int stored = 0;
    for (const Effect& effect : core_->TakeEffects()) {
      if (effect.kind == Effect::Kind::kUnitGivenUp) {
        SubmitEvent event = effect.submit;
        event.payload_sha256 = "placeholder";
        event.payload = {1, 0, 11};
        core_->RecordFailed(event, effect.text);
        ++stored;
      }
    }
    return stored;
  }
  absl::StatusOr<SubmitResult> Submit(const std::string& session,
                                      const UnitId& unit) {
    SubmitEvent event;
    event.caller = Caller(session, "actor");
    event.unit = unit;
    event.policy_hash = "policy";
    event.payload_sha256 = "result";
    event.payload = {1, 20, 6};
    return core_->Submit(event);
  }

  CoreOptions options_;
  PlanOptions plan_;
  MemoryDisk disk_;
  std::unique_ptr<LedgerStore> ledger_;
  std::unique_ptr<CoordinatorCore> core_;
  int actors_ = 0;
};

TEST_F(FailedUnitsTest, AUnitThatKillsItsActorsIsGivenUp) {
  Open();
  const UnitId first{0, 1, 0};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(StorePlaceholders(), 0);
    EXPECT_EQ(Die(), first);
  }
  EXPECT_EQ(core_->TakeRows().size() > 0, true);
  EXPECT_EQ(Lease("actor"), (UnitId{0, 1, 1})) << "not that unit again";
  EXPECT_EQ(StorePlaceholders(), 1);
  EXPECT_OK(core_->CheckInvariants());
  ASSERT_THAT(core_->SubmittedUnits(1), SizeIs(1));
  EXPECT_EQ(core_->SubmittedUnits(1)[0].sha256, "placeholder");
  EXPECT_EQ(core_->SubmittedUnits(1)[0].policy_hash, "policy");
  ASSERT_THAT(core_->Status().failed_units, SizeIs(1));
  EXPECT_THAT(core_->Status().failed_units[0].why,
              HasSubstr("its actors died, 3 times"));
  // A result that comes too late is no contradiction.
  ASSERT_OK_AND_ASSIGN(const SubmitResult late, Submit("actor", first));
  EXPECT_EQ(late, SubmitResult::kAlreadyConsumed);
  Commit();
  // A restart knows it.
  Open();
  ASSERT_THAT(core_->Status().failed_units, SizeIs(1));
  ASSERT_OK_AND_ASSIGN(const SubmitResult later, Submit("actor", first));
  EXPECT_EQ(later, SubmitResult::kAlreadyConsumed);
  EXPECT_EQ(Lease("actor"), (UnitId{0, 1, 1}));
}

TEST_F(FailedUnitsTest, SoIsOneWhoseResultIsRefused) {
  Open();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(StorePlaceholders(), 0);
    const UnitId unit = Lease("actor");
    EXPECT_EQ(unit.index, 0);
    ASSERT_OK(core_->ReturnFailed(Caller("actor", "actor"), {unit},
                                  "the text is too long"));
    // Not twice for one lease.
    ASSERT_OK(core_->ReturnFailed(Caller("actor", "actor"), {unit}, "again"));
  }
  EXPECT_EQ(StorePlaceholders(), 1);
  EXPECT_THAT(disk_.state.failed_units, IsEmpty()) << "not before the commit";
  Commit();
  EXPECT_THAT(disk_.state.failed_units, SizeIs(1));
  EXPECT_THAT(disk_.state.units, SizeIs(1));
}

TEST_F(FailedUnitsTest, ReturnedUnitsAndZeroCountNothing) {
  Open();
  for (int i = 0; i < 9; ++i) {
    ASSERT_OK(core_->Return(Caller("actor", "actor"), {Lease("actor")}));
  }
  EXPECT_EQ(StorePlaceholders(), 0);
  options_.give_up_after = 0;
  Open();
  for (int i = 0; i < 9; ++i) Die();
  EXPECT_EQ(StorePlaceholders(), 0);
}

TEST_F(FailedUnitsTest, ManyInARowAreNotTheUnitsFault) {
  options_.give_up_after = 1;
  Open();
  for (int i = 0; i < 4; ++i) {
    Die();
    EXPECT_EQ(StorePlaceholders(), 1);
  }
  EXPECT_EQ(core_->Status().failure, "");
  const UnitId sound = Lease("actor");
  ASSERT_OK(Submit("actor", sound).status());
  Die();  // counts anew
  EXPECT_EQ(StorePlaceholders(), 1);
  EXPECT_EQ(core_->Status().failure, "");
  options_.give_up_after = 1;
  disk_ = MemoryDisk();
  Open();
  for (int i = 0; i < 5; ++i) {
    Die();
    StorePlaceholders();
  }
  EXPECT_THAT(core_->Status().failure, HasSubstr("not the units"));
  EXPECT_EQ(core_->Status().failure_exit_code, 43);
}

TEST_F(FailedUnitsTest, AStreamTrainsOnPlaceholdersToo) {
  plan_.schedule.mode = ScheduleMode::kStreaming;
  plan_.schedule.eta = 1;
  options_.give_up_after = 1;
  Open();
  Die();
  EXPECT_EQ(StorePlaceholders(), 1);
  EXPECT_OK(core_->CheckInvariants());
  EXPECT_EQ(core_->Status().units_submitted, 1);
}

TEST_F(FailedUnitsTest, ARunOfOneActorWaitsForNoSecondOpinion) {
  options_.audit_fraction = 1;
  options_.actors = 1;
  Open();
  const UnitId unit = Lease("actor");
  ASSERT_OK(Submit("actor", unit).status());
  EXPECT_THAT(core_->SubmittedUnits(1), SizeIs(1)) << "at once";
  int told = 0;
  ASSERT_OK(Submit("actor", Lease("actor")).status());
  for (const EventRow& event : core_->events()) {
    told += event.kind == "audit" ? 1 : 0;
  }
  EXPECT_EQ(told, 1);
  // An operator wants two: from now on they wait for each other.
  core_->Scale("actor", 2);
  ASSERT_OK(Submit("actor", Lease("actor")).status());
  EXPECT_THAT(core_->SubmittedUnits(1), SizeIs(2));
}

}  // namespace
}  // namespace cox
