// A restart reads what it needs, and knows of the rest what it must.

#include "coordinator/left_out.h"

#include "absl/strings/str_cat.h"
#include "coordinator/memory_ledger.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Nine steps of two units in segments of three units. Streaming takes the units
// in pairs across rounds, and drops one.
std::vector<LedgerRow> Rows(bool streaming) {
  std::vector<LedgerRow> rows = {MetaRow{"run_id", "abc"},
                                 StageRow{0, "running", 20, {}}};
  int64_t number = 0;
  for (int64_t step = 1; step <= 9; ++step) {
    for (int32_t index = 0; index < 2; ++index, ++number) {
      rows.push_back(UnitRow{{0, step, index},
                             step - 1,
                             "policy",
                             absl::StrCat("unit ", number),
                             {static_cast<int32_t>(number / 3 + 1),
                              static_cast<uint64_t>(number % 3 * 10), 10}});
    }
    rows.push_back(VersionRow{"policy", {0, step}, "w", "{}"});
    rows.push_back(StepRow{0,
                           step,
                           "batch",
                           "weights",
                           false,
                           Generation{1},
                           {{"objective/scores", 0.5}}});
    rows.push_back(EventRow{step, 1.0, "step", "text"});
    if (step % 2 == 0) {
      rows.push_back(CheckpointRow{0, step, absl::StrCat("/c/", step), "m",
                                   "weights", "s", Generation{1}});
    }
  }
  rows.push_back(VersionRow{"policy", {0, 0}, "w", "{}"});
  rows.push_back(VersionRow{"critic", {0, 3}, "w", "{}"});
  if (streaming) {
    rows.push_back(BatchRow{0, 1, {{0, 1, 0}, {0, 2, 0}}, {{0, 1, 1}}});
    rows.push_back(BatchRow{0, 2, {{0, 2, 1}, {0, 3, 1}}, {}});
    rows.push_back(BatchRow{0, 8, {{0, 3, 0}, {0, 4, 0}}, {}});
  }
  return rows;
}

class LeftOutTest : public ::testing::TestWithParam<bool> {};

TEST_P(LeftOutTest, BothLedgersLeaveOutTheSame) {
  testing::TempDir dir;
  MemoryDisk disk;
  ASSERT_OK_AND_ASSIGN(const auto sqlite,
                       OpenSqliteLedger(dir.Join("ledger.db")));
  const auto memory = OpenMemoryLedger(&disk);
  ASSERT_OK(sqlite->Commit(Rows(GetParam())));
  ASSERT_OK(memory->Commit(Rows(GetParam())));
  for (const bool done : {false, true}) {
    if (done) {
      ASSERT_OK(sqlite->Commit({StageRow{0, "done", 9, {}}}));
      ASSERT_OK(memory->Commit({StageRow{0, "done", 9, {}}}));
    }
    for (const int64_t steps :
         {int64_t{0}, int64_t{3}, int64_t{7}, int64_t{100}, INT64_MAX}) {
      const LedgerWindow window{.keep_steps = steps, .keep_events = 4};
      ASSERT_OK_AND_ASSIGN(const LedgerState a, sqlite->Load(window));
      ASSERT_OK_AND_ASSIGN(const LedgerState b, memory->Load(window));
      EXPECT_EQ(a.units, b.units);
      EXPECT_EQ(a.batches, b.batches);
      EXPECT_EQ(a.versions, b.versions);
      EXPECT_EQ(a.steps, b.steps);
      EXPECT_EQ(a.checkpoints, b.checkpoints);
      EXPECT_EQ(a.events, b.events);
      EXPECT_EQ(a.left_out, b.left_out);
      EXPECT_THAT(a.events, SizeIs(4));
    }
    ASSERT_OK_AND_ASSIGN(const LedgerState all, sqlite->LoadAll());
    EXPECT_THAT(all.units, SizeIs(18));
    EXPECT_THAT(all.steps, SizeIs(9));
    EXPECT_THAT(all.events, SizeIs(9));
    EXPECT_EQ(all.left_out, LeftOutRows());
  }
}
INSTANTIATE_TEST_SUITE_P(Schedules, LeftOutTest, ::testing::Bool());

LedgerState Recent(bool streaming, int64_t keep_steps) {
  MemoryDisk disk;
  const auto ledger = OpenMemoryLedger(&disk);
  EXPECT_OK(ledger->Commit(Rows(streaming)));
  return *ledger->Load({.keep_steps = keep_steps});
}

TEST(LeaveOutTest, StepsBehindTheSecondCheckpointAndTheWindowAreAddedUp) {
  // Checkpoints 8 and 6: 5 steps could go; the window keeps 5 of 9.
  const LedgerState state = Recent(/*streaming=*/false, 5);
  const LeftOutRows::Stage& stage = state.left_out.stages.at(0);
  EXPECT_EQ(stage.up_to_step, 4);
  EXPECT_EQ(stage.units, 8);
  EXPECT_THAT(stage.unit_ids, IsEmpty());
  ASSERT_THAT(state.units, SizeIs(10));
  EXPECT_EQ(state.units[0].id, (UnitId{0, 5, 0}));
  // Steps 2 and 4 have checkpoints, which their metrics measure.
  std::vector<int64_t> steps;
  for (const StepRow& row : state.steps) {
    steps.push_back(row.step);
    EXPECT_EQ(row.weight_hash, row.step <= 4 ? "" : "weights");
    EXPECT_THAT(row.metrics, SizeIs(1));
  }
  EXPECT_THAT(steps, ElementsAre(2, 4, 5, 6, 7, 8, 9));
  EXPECT_THAT(state.versions, SizeIs(7));  // critic, 0, and 5 to 9
  // Segment 3 has units 6 and 7 of the eight.
  const LeftOutRows::Payloads& last = state.left_out.payloads.at({3, 0});
  EXPECT_EQ(last.bytes, 20u);
  EXPECT_EQ(last.end, 20u);
  EXPECT_EQ(last.last_step, 4);
  EXPECT_EQ(last.open, 0);
}

TEST(LeaveOutTest, StreamingGoesByTheBatchThatHasAUnit) {
  const LedgerState state = Recent(/*streaming=*/true, 5);
  const LeftOutRows::Stage& stage = state.left_out.stages.at(0);
  EXPECT_EQ(stage.units, 5);  // of batches 1 and 2, the dropped one too
  EXPECT_THAT(stage.unit_ids,
              ElementsAre(UnitId{0, 1, 0}, UnitId{0, 1, 1}, UnitId{0, 2, 0},
                          UnitId{0, 2, 1}, UnitId{0, 3, 1}));
  EXPECT_THAT(state.units, SizeIs(13));  // batch 8's, and those in none
  EXPECT_THAT(state.batches, SizeIs(1));
  EXPECT_EQ(state.left_out.payloads.at({2, 0}).last_step, 2);
}

TEST(LeaveOutTest, NothingGoesWithoutTwoCheckpoints) {
  EXPECT_EQ(ForgottenEnd({8}, 9, 0), 0);
  EXPECT_EQ(ForgottenEnd({8, 6}, 9, 0), 5);
  EXPECT_EQ(ForgottenEnd({8, 6}, 9, 7), 2);
  EXPECT_EQ(ForgottenEnd({8, 6}, 9, 100), 0);
  EXPECT_EQ(ForgottenEnd({8, 6}, 9, INT64_MAX), 0);
}

}  // namespace
}  // namespace cox
