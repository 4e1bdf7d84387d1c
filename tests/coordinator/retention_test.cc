#include "coordinator/retention.h"

#include "coordinator/core.h"
#include "coordinator/memory_ledger.h"
#include "gmock/gmock.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::vector<CheckpointRow> Rows(std::initializer_list<int64_t> newest_first) {
  std::vector<CheckpointRow> rows;
  for (const int64_t step : newest_first) {
    CheckpointRow row;
    row.step = step;
    rows.push_back(row);
  }
  return rows;
}

TEST(WhyKept, LastOnesAndTheEndOfTheStage) {
  const auto none = [](int64_t) { return std::optional<double>(); };
  EXPECT_THAT(WhyKept({}, Rows({9, 8, 7}), 9, none),
              ElementsAre("end of the stage, last", "last", ""));
  // Never fewer than two.
  EXPECT_THAT(
      WhyKept({.keep_last = 0, .best_metric = ""}, Rows({3, 2, 1}), 9, none),
      ElementsAre("last", "last", ""));
}

TEST(WhyKept, TheBestOnesOfEitherSense) {
  const auto metric = [](int64_t step) -> std::optional<double> {
    switch (step) {
      case 1:
        return 5.0;
      case 2:
        return 7.0;
      case 3:
        return std::nullopt;
      case 4:
        return 7.0;
      default:
        return 1.0;
    }
  };
  CheckpointRetention highest{
      .keep_last = 2, .keep_best = 2, .best_metric = "m"};
  EXPECT_THAT(WhyKept(highest, Rows({6, 5, 4, 3, 2, 1}), 9, metric),
              ElementsAre("last", "last", "best m = 7", "", "best m = 7", ""));
  // Of equal ones the newer.
  highest.keep_best = 1;
  EXPECT_THAT(WhyKept(highest, Rows({6, 5, 4, 3, 2, 1}), 9, metric),
              ElementsAre("last", "last", "best m = 7", "", "", ""));
  CheckpointRetention lowest = highest;
  lowest.best_is_highest = false;
  EXPECT_THAT(WhyKept(lowest, Rows({4, 3, 2, 1}), 9, metric),
              ElementsAre("last", "last", "", "best m = 5"));
}

// Deleting as checkpoints come keeps the best of all that ever were.
TEST(WhyKept, ADeletedOneWouldNeverBeAmongTheBestAgain) {
  const double values[] = {3, 9, 1, 4, 9, 2, 8, 5, 7, 0};
  const auto metric = [&](int64_t step) {
    return std::optional<double>(values[step]);
  };
  const CheckpointRetention retention{
      .keep_last = 2, .keep_best = 3, .best_metric = "m"};
  std::vector<CheckpointRow> kept;
  std::vector<CheckpointRow> all;
  for (int64_t step = 0; step < 10; ++step) {
    for (auto* rows : {&kept, &all}) {
      rows->insert(rows->begin(), Rows({step})[0]);
    }
    const auto why = WhyKept(retention, kept, 99, metric);
    std::vector<CheckpointRow> next;
    for (size_t i = 0; i < kept.size(); ++i) {
      if (!why[i].empty()) next.push_back(kept[i]);
    }
    kept = next;
    std::vector<CheckpointRow> expected;
    const auto of_all = WhyKept(retention, all, 99, metric);
    for (size_t i = 0; i < all.size(); ++i) {
      if (!of_all[i].empty()) expected.push_back(all[i]);
    }
    EXPECT_EQ(kept, expected) << step;
  }
}

UnitRow Unit(int64_t step, int32_t segment, uint64_t bytes) {
  UnitRow row;
  row.id = {0, step, segment};
  row.payload = {segment, 0, bytes};
  return row;
}

TEST(SegmentBook, OldestRetiredSegmentsGoUntilTheBudgetIsKept) {
  SegmentBook book;
  for (int32_t segment = 1; segment <= 5; ++segment) {
    book.Add(Unit(segment, segment, 100), segment);
  }
  const auto up_to = [](int64_t last) {
    return [last](int32_t, int64_t step) { return step != 0 && step <= last; };
  };
  const auto segments = [](const std::vector<SegmentRemovedRow>& rows) {
    std::vector<int32_t> numbers;
    for (const SegmentRemovedRow& row : rows) numbers.push_back(row.segment);
    return numbers;
  };
  EXPECT_THAT(book.Surplus(500, {}, up_to(4)), IsEmpty());
  EXPECT_THAT(segments(book.Surplus(300, {}, up_to(4))), ElementsAre(1, 2));
  EXPECT_THAT(segments(book.Surplus(0, {}, up_to(3))), ElementsAre(1, 2, 3));
  EXPECT_THAT(segments(book.Surplus(0, {}, up_to(9))), ElementsAre(1, 2, 3, 4))
      << "the newest one is still written";
  EXPECT_THAT(segments(book.Surplus(0, {2}, up_to(3))), ElementsAre(1, 3));
  book.Remove({1, 100});
  EXPECT_TRUE(book.IsRemoved(1));
  EXPECT_THAT(segments(book.Surplus(0, {}, up_to(3))), ElementsAre(2, 3));
}

TEST(SegmentBook, AUnitThatNoStepHasKeepsItsSegment) {
  SegmentBook book;
  UnitRow queued = Unit(2, 1, 10);
  book.Add(Unit(1, 1, 10), 1);
  book.Add(queued, 0);
  book.Add(Unit(3, 2, 10), 0);
  const auto trained = [](int32_t, int64_t step) { return step != 0; };
  EXPECT_THAT(book.Surplus(0, {}, trained), IsEmpty());
  book.Settle(queued, 4);
  EXPECT_THAT(book.Surplus(0, {}, trained), SizeIs(1));
}

// --- The core

class RetentionTest : public ::testing::Test {
 protected:
  RetentionTest() {
    StagePlan stage;
    stage.kind = StageKind::kPpo;
    stage.total_steps = 6;
    stage.prompt_count = 1;
    stage.prompts_per_step = 1;
    stage.unit_prompts = 1;
    plan_.stages = {stage};
    options_.payloads.bytes = 0;
  }
  void Open() {
    ledger_ = OpenMemoryLedger(&disk_);
    auto plan = RunPlan::Create(plan_);
    ASSERT_OK(plan.status());
    auto core = CoordinatorCore::Create(options_, *plan, disk_.state,
                                        ledger_->epoch(), MonoTime{1});
    ASSERT_OK(core.status());
    core_ = *std::move(core);
    for (const char* role : {"learner", "actor", "reward"}) {
      ASSERT_OK(core_->Register({Caller(role), "127.0.0.1:3", "", 0}));
    }
    ASSERT_OK(core_->Join({Caller("learner"), 0, 1, "l:9"}).status());
    Publish("policy", core_->committed());
    if (core_->committed() == 0) Publish("reference", 0);
    ASSERT_OK(core_->ReportHeld(Caller("reward"), {"reference 0"}, "r:1"));
    Commit();
  }
  void Commit() { ASSERT_OK(ledger_->Commit(core_->TakeRows())); }
  CoreCaller Caller(const std::string& role) {
    return {role, role, role, core_->epoch().value,
            role == "learner" ? core_->generation().value : 0};
  }
  void Publish(const std::string& model, int64_t step) {
    const std::string hash = absl::StrCat(model, " ", step);
    ASSERT_OK(core_->Publish(
        {Caller("learner"), {model, {0, step}, hash, ""}, "l:1"}));
  }
  // Every step in a segment of its own.
  void Step(int64_t step, bool checkpoint) {
    ASSERT_OK_AND_ASSIGN(const auto grants, core_->Lease(Caller("actor"), 1));
    ASSERT_THAT(grants, SizeIs(1));
    SubmitEvent submit;
    submit.caller = Caller("actor");
    submit.unit = grants[0].unit;
    submit.policy_hash = grants[0].policy.version.content_hash;
    submit.version_step = step - 1;
    submit.payload_sha256 = absl::StrCat("unit ", step);
    submit.payload = {static_cast<int32_t>(step), 0, 100};
    ASSERT_OK(core_->Submit(submit).status());
    ASSERT_OK_AND_ASSIGN(const auto batch,
                         core_->TakeBatch(Caller("learner"), 0, step));
    CommitStepEvent event;
    event.caller = Caller("learner");
    event.step = step;
    event.batch_sha256 = batch->batch_sha256;
    event.weight_hash = absl::StrCat("policy ", step);
    event.metrics = {{"score", score_[static_cast<size_t>(step)]}};
    ASSERT_OK(core_->CommitStep(event).status());
    if (checkpoint) {
      CommitCheckpointEvent saved;
      saved.caller = Caller("learner");
      saved.checkpoint = {step, absl::StrCat("/c/", step), "m", "s"};
      saved.weight_hash = event.weight_hash;
      ASSERT_OK_AND_ASSIGN(removed_, core_->CommitCheckpoint(saved));
    }
    if (step < 6) Publish("policy", step);
    Commit();
  }
  std::vector<int32_t> Deleted() {
    std::vector<int32_t> segments;
    for (const SegmentRemovedRow& row : disk_.state.removed_segments) {
      segments.push_back(row.segment);
    }
    return segments;
  }
  std::vector<int64_t> Checkpoints() {
    std::vector<int64_t> steps;
    for (const CheckpointRow& row : disk_.state.checkpoints) {
      steps.push_back(row.step);
    }
    return steps;
  }

  CoreOptions options_;
  PlanOptions plan_;
  MemoryDisk disk_;
  std::unique_ptr<LedgerStore> ledger_;
  std::unique_ptr<CoordinatorCore> core_;
  std::vector<std::string> removed_;
  std::vector<double> score_ = {0, 1, 9, 3, 8, 2, 4};
};

TEST_F(RetentionTest, PayloadsUpToTheSecondNewestCheckpointGo) {
  Open();
  Step(1, true);
  Step(2, false);
  EXPECT_THAT(Deleted(), IsEmpty()) << "one checkpoint is not enough";
  Step(3, true);
  EXPECT_THAT(Deleted(), ElementsAre(1));
  Step(4, true);
  EXPECT_THAT(Deleted(), ElementsAre(1, 2, 3));
  int effects = 0;
  for (const Effect& effect : core_->TakeEffects()) {
    effects += effect.kind == Effect::Kind::kSegmentRemoved ? 1 : 0;
  }
  EXPECT_EQ(effects, 3);
  EXPECT_THAT(core_->TakeBatch(Caller("learner"), 0, 2).status(),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("retired")));
  EXPECT_OK(core_->TakeBatch(Caller("learner"), 0, 4).status());
  Open();  // a restart knows them
  EXPECT_THAT(core_->CheckPayloadsKept(0, 3),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(core_->CheckPayloadsKept(0, 4));
  Step(5, true);
  EXPECT_THAT(Deleted(), ElementsAre(1, 2, 3, 4));
}

TEST_F(RetentionTest, TheBudgetAndTheLastStepsKeepThem) {
  options_.payloads.bytes = 300;
  Open();
  for (int64_t step = 1; step <= 4; ++step) Step(step, true);
  EXPECT_THAT(Deleted(), ElementsAre(1));
  options_.payloads = {.bytes = 0, .steps = 3};
  Open();  // lowered
  EXPECT_THAT(Deleted(), ElementsAre(1)) << "2 to 4 are the last three";
  Step(5, true);
  EXPECT_THAT(Deleted(), ElementsAre(1, 2));
}

TEST_F(RetentionTest, TheBestCheckpointsStay) {
  options_.checkpoints = {
      .keep_last = 2, .keep_best = 1, .best_metric = "score"};
  Open();
  for (int64_t step = 1; step <= 4; ++step) Step(step, true);
  EXPECT_THAT(Checkpoints(), ElementsAre(2, 3, 4));
  EXPECT_THAT(removed_, IsEmpty());
  Step(5, true);
  EXPECT_THAT(Checkpoints(), ElementsAre(2, 4, 5));
  EXPECT_THAT(removed_, ElementsAre("/c/3"));
}

}  // namespace
}  // namespace cox
