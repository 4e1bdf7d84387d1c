// One contract for both ledgers, and the segment files beside them.

#include "coordinator/ledger.h"

#include <functional>

#include "coordinator/memory_ledger.h"
#include "coordinator/segments.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "lib/base/hash.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::cox::testing::StatusIsWith;
using ::testing::HasSubstr;

UnitRow MakeUnit(int64_t step, int32_t index, const std::string& sha256) {
  return {{2, step, index}, step - 1, "policy", sha256, {1, 16, 8}};
}

class LedgerContract : public ::testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<LedgerStore> Open() {
    if (GetParam()) {
      auto ledger = OpenSqliteLedger(JoinPath(dir_.path(), "ledger.db"));
      EXPECT_OK(ledger.status());
      return *std::move(ledger);
    }
    return OpenMemoryLedger(&disk_);
  }
  testing::TempDir dir_;
  MemoryDisk disk_;
};

TEST_P(LedgerContract, EachIncarnationGetsTheNextEpoch) {
  EXPECT_EQ(Open()->epoch().value, 1);
  EXPECT_EQ(Open()->epoch().value, 2);
}

TEST_P(LedgerContract, RowsComeBackAfterReopening) {
  const std::vector<LedgerRow> rows = {
      MetaRow{"run_id", "abc"},
      GenerationRow{Generation{3}},
      MakeUnit(1, 0, "h0"),
      MakeUnit(1, 1, "h1"),
      BatchRow{2, 1, {{2, 1, 1}, {2, 1, 0}}, {{2, 4, 7}}},
      VersionRow{"policy", {2, 0}, "hash", "{\"a\": \"text 'quoted'\"}"},
      StepRow{0, 1, "b", "w", true, Generation{3}, {{"loss/rm", 0.25}}},
      CheckpointRow{0, 1, "/c", "m", "w", "s", Generation{3}},
      StageRow{0, "running", 5, {}},
      EventRow{1, 2.5, "kind", "text"},
      ControlRow{1, "pause", 7}};
  ASSERT_OK(Open()->Commit(rows));
  ASSERT_OK_AND_ASSIGN(LedgerState state, Open()->LoadAll());
  EXPECT_EQ(state.meta.at("run_id"), "abc");
  EXPECT_EQ(state.generation.value, 3);
  ASSERT_EQ(state.units.size(), 2u);
  EXPECT_EQ(LedgerRow(state.units[1]), rows[3]);
  ASSERT_EQ(state.batches.size(), 1u);
  EXPECT_EQ(LedgerRow(state.batches[0]), rows[4]);
  EXPECT_EQ(LedgerRow(state.versions.at(0)), rows[5]);
  EXPECT_EQ(LedgerRow(state.steps.at(0)), rows[6]);
  EXPECT_EQ(LedgerRow(state.checkpoints.at(0)), rows[7]);
  EXPECT_EQ(LedgerRow(state.stages.at(0)), rows[8]);
  EXPECT_EQ(LedgerRow(state.events.at(0)), rows[9]);
  EXPECT_EQ(LedgerRow(state.controls.at(0)), rows[10]);
}

TEST_P(LedgerContract, AnOlderIncarnationCannotWrite) {
  auto zombie = Open();
  ASSERT_OK(zombie->CheckFence());
  auto current = Open();
  EXPECT_THAT(zombie->CheckFence(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(zombie->Commit({MakeUnit(1, 0, "zombie")}),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK(current->Commit({MakeUnit(1, 0, "current")}));
  ASSERT_OK_AND_ASSIGN(LedgerState state, current->LoadAll());
  EXPECT_EQ(state.units.at(0).sha256, "current");
}

TEST_P(LedgerContract, ATransactionIsAllOrNothing) {
  auto ledger = Open();
  ASSERT_OK(ledger->Commit({MakeUnit(1, 0, "first")}));
  EXPECT_THAT(ledger->Commit({MakeUnit(1, 1, "new"), MakeUnit(1, 0, "again")}),
              StatusIs(absl::StatusCode::kAlreadyExists));
  ASSERT_OK_AND_ASSIGN(LedgerState state, ledger->LoadAll());
  ASSERT_EQ(state.units.size(), 1u);
  EXPECT_EQ(state.units[0].sha256, "first");
}

TEST_P(LedgerContract, RowsOfOneTransactionMayNotCollideEither) {
  auto ledger = Open();
  EXPECT_THAT(ledger->Commit({MakeUnit(1, 0, "a"), MakeUnit(1, 1, "b"),
                              MakeUnit(1, 0, "c")}),
              StatusIs(absl::StatusCode::kAlreadyExists));
  ASSERT_OK(ledger->Commit(
      {StageRow{0, "running", 1, {}}, StageRow{0, "done", 1, {}}}));
  ASSERT_OK_AND_ASSIGN(LedgerState state, ledger->LoadAll());
  EXPECT_TRUE(state.units.empty());
  EXPECT_EQ(state.stages.at(0).state, "done");
}

TEST_P(LedgerContract, ARemovedCheckpointMayBeWrittenAgain) {
  auto ledger = Open();
  const CheckpointRow row{0, 1, "/c", "m", "w", "s", Generation{1}};
  ASSERT_OK(ledger->Commit({row}));
  ASSERT_OK(ledger->Commit({CheckpointRemovedRow{0, 1}}));
  ASSERT_OK(ledger->Commit({CheckpointRemovedRow{0, 9}}));  // never was there
  ASSERT_OK(ledger->Commit({row}));
  ASSERT_OK_AND_ASSIGN(LedgerState state, Open()->LoadAll());
  EXPECT_EQ(state.checkpoints.at(0), row);
}

TEST_P(LedgerContract, AFailedTransactionChangesNothingThatComesLater) {
  auto ledger = Open();
  ASSERT_OK(ledger->Commit({MakeUnit(1, 0, "first"), MetaRow{"k", "a"}}));
  EXPECT_THAT(ledger->Commit({GenerationRow{Generation{7}}, MetaRow{"k", "b"},
                              MakeUnit(1, 0, "again")}),
              StatusIs(absl::StatusCode::kAlreadyExists));
  ASSERT_OK(ledger->Commit({MakeUnit(1, 1, "second")}));
  ledger = Open();
  ASSERT_OK_AND_ASSIGN(LedgerState state, ledger->LoadAll());
  EXPECT_EQ(state.generation.value, 0);
  EXPECT_EQ(state.meta.at("k"), "a");
  EXPECT_EQ(state.units.size(), 2u);
}

TEST_P(LedgerContract, StageAndMetaRowsReplaceAndCheckpointsGo) {
  auto ledger = Open();
  ASSERT_OK(ledger->Commit(
      {MetaRow{"k", "a"}, StageRow{0, "running", 1, {}},
       CheckpointRow{0, 1, "/c", "m", "w", "s", Generation{1}}}));
  ASSERT_OK(ledger->Commit({MetaRow{"k", "b"}, StageRow{0, "done", 2, {}},
                            CheckpointRemovedRow{0, 1}}));
  ASSERT_OK_AND_ASSIGN(LedgerState state, ledger->LoadAll());
  EXPECT_EQ(state.meta.at("k"), "b");
  ASSERT_EQ(state.stages.size(), 1u);
  EXPECT_EQ(state.stages[0].state, "done");
  EXPECT_EQ(state.stages[0].total_steps, 2);
  EXPECT_TRUE(state.checkpoints.empty());
}

INSTANTIATE_TEST_SUITE_P(Stores, LedgerContract, ::testing::Bool(),
                         [](const auto& c) {
                           return std::string(c.param ? "Sqlite" : "Memory");
                         });

class Segments : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<SegmentStore>> Open(
      uint64_t segment_bytes = 64) {
    SegmentStore::Options options;
    options.dir = JoinPath(dir_.path(), "segments");
    options.segment_bytes = segment_bytes;
    return SegmentStore::Open(Fs::Real(), options, rows_);
  }
  void Add(SegmentStore& store, const std::string& payload) {
    ASSERT_OK_AND_ASSIGN(PayloadRef ref, store.Append(payload));
    ASSERT_OK(store.Sync());
    UnitRow row;
    row.id = {0, 1, static_cast<int32_t>(rows_.size())};
    row.sha256 = Sha256Hex(payload);
    row.payload = ref;
    rows_.push_back(row);
  }
  testing::TempDir dir_;
  std::vector<UnitRow> rows_;
};

TEST_F(Segments, PayloadsSurviveReopeningAndGarbageIsCut) {
  {
    ASSERT_OK_AND_ASSIGN(auto store, Open());
    Add(*store, "first");
    Add(*store, "second");
    ASSERT_OK(store->Append("never acknowledged").status());
  }
  ASSERT_OK_AND_ASSIGN(auto store, Open());
  EXPECT_EQ(*Fs::Real().FileSize(JoinPath(dir_.path(), "segments/000001.seg")),
            11u);
  Add(*store, "third");
  const char* expected[] = {"first", "second", "third"};
  for (size_t i = 0; i < rows_.size(); ++i) {
    ASSERT_OK_AND_ASSIGN(std::string bytes,
                         store->Read(rows_[i].payload, rows_[i].sha256));
    EXPECT_EQ(bytes, expected[i]);
  }
}

TEST_F(Segments, RollsOverAndRemovesFilesWithoutRows) {
  {
    ASSERT_OK_AND_ASSIGN(auto store, Open());
    Add(*store, std::string(60, 'a'));
    ASSERT_OK(store->Append(std::string(60, 'b')).status());
    ASSERT_OK(store->Sync());
  }
  ASSERT_OK_AND_ASSIGN(auto store, Open());
  EXPECT_EQ(*Fs::Real().FileSize(JoinPath(dir_.path(), "segments/000002.seg")),
            0u);
  Add(*store, std::string(60, 'c'));
  EXPECT_EQ(rows_.back().payload.segment, 2);
}

TEST_F(Segments, MissingOrDamagedBytesAreDataLoss) {
  {
    ASSERT_OK_AND_ASSIGN(auto store, Open());
    Add(*store, "payload");
    UnitRow wrong = rows_[0];
    EXPECT_THAT(store->Read(wrong.payload, Sha256Hex("other")).status(),
                StatusIs(absl::StatusCode::kDataLoss));
  }
  ASSERT_OK(
      Fs::Real().Truncate(JoinPath(dir_.path(), "segments/000001.seg"), 3));
  EXPECT_THAT(Open().status(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(Segments, AMissingFileIsDataLoss) {
  ASSERT_OK_AND_ASSIGN(auto store, Open());
  Add(*store, "payload");
  const std::string file = JoinPath(dir_.path(), "segments/000001.seg");
  ASSERT_OK(Fs::Real().RemoveAll(file));
  EXPECT_THAT(store->Read(rows_[0].payload, rows_[0].sha256).status(),
              StatusIsWith(absl::StatusCode::kDataLoss, HasSubstr(file)));
  EXPECT_THAT(Open().status(),
              StatusIsWith(absl::StatusCode::kDataLoss, HasSubstr(file)));
}

// An older incarnation may still run: its bytes must not stand where a newer
// one believes its own to be.
TEST_F(Segments, EachIncarnationWritesFilesOfItsOwn) {
  ASSERT_OK_AND_ASSIGN(auto zombie, Open());
  Add(*zombie, "first");
  ASSERT_OK_AND_ASSIGN(auto store, Open());
  ASSERT_OK(zombie->Append("late").status());
  Add(*store, "second");
  // It cannot begin a file that the newer one has begun.
  EXPECT_THAT(zombie->Append(std::string(60, 'z')).status(),
              StatusIs(absl::StatusCode::kAlreadyExists));
  for (const UnitRow& row : rows_) {
    EXPECT_OK(store->Read(row.payload, row.sha256).status());
  }
  EXPECT_NE(rows_[0].payload.segment, rows_[1].payload.segment);
}

// All of them, or a power loss keeps a row and drops its folder.
TEST(SegmentsCrash, SyncedPayloadsOutliveAPowerLoss) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    FaultFs fs;
    ASSERT_OK(fs.MakeDirs("/run"));
    ASSERT_OK(fs.SyncDir("/"));
    ASSERT_OK_AND_ASSIGN(auto store,
                         SegmentStore::Open(fs, {.dir = "/run/segments"}, {}));
    ASSERT_OK(store->Append("payload").status());
    ASSERT_OK(store->Sync());
    CounterRng rng(seed, "crash");
    fs.Crash(rng);
    EXPECT_EQ(*fs.ReadAll("/run/segments/000001.seg"), "payload") << seed;
  }
}

}  // namespace
}  // namespace cox
