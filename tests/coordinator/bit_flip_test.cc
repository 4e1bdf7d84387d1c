// Bits that flip at rest in the ledger's file and in segments: found, or
// without consequence.

#include <memory>
#include <string>
#include <vector>

#include "coordinator/ledger.h"
#include "coordinator/segments.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "lib/base/hash.h"
#include "tests/base/sqlite_fault_vfs.h"
#include "tests/testing/flips.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

constexpr char kPath[] = "/run/ledger.db";
constexpr size_t kHeader = 512;  // of the file, and of its first pages

void Put(FaultFs& fs, const std::string& path, const std::string& bytes) {
  auto file = fs.Create(path, /*exclusive=*/false);
  COX_CHECK(file.ok() && (*file)->Append(bytes).ok());
}

bool Same(const LedgerState& a, const LedgerState& b) {
  return a.generation == b.generation && a.meta == b.meta &&
         a.units == b.units && a.batches == b.batches &&
         a.versions == b.versions && a.steps == b.steps &&
         a.checkpoints == b.checkpoints && a.stages == b.stages &&
         a.events == b.events && a.controls == b.controls;
}

// A ledger as a finished incarnation leaves it.
LedgerState WriteLedger() {
  auto ledger = OpenSqliteLedger(kPath);
  COX_CHECK(ledger.ok());
  for (int step = 1; step <= 12; ++step) {
    std::vector<LedgerRow> rows = {GenerationRow{Generation{step}},
                                   MetaRow{"run_id", "abc"},
                                   StageRow{0, "running", step, {}}};
    for (int i = 0; i < 6; ++i) {
      rows.push_back(UnitRow{{0, step, i},
                             step - 1,
                             Sha256Hex(absl::StrCat("p", step)),
                             Sha256Hex(absl::StrCat(step, ".", i)),
                             {1, static_cast<uint64_t>(100 * i), 100}});
    }
    rows.push_back(BatchRow{0, step, {{0, step, 1}, {0, step, 0}}, {}});
    rows.push_back(VersionRow{"policy",
                              {0, step},
                              Sha256Hex(absl::StrCat("p", step)),
                              std::string(300, 'm')});
    rows.push_back(StepRow{
        0, step, "b", "w", false, Generation{step}, {{"loss", 0.5 * step}}});
    rows.push_back(CheckpointRow{0, step, absl::StrCat("/c/", step), "m", "w",
                                 "s", Generation{step}});
    if (step > 2) {
      rows.push_back(CheckpointRemovedRow{0, step - 2});
    }
    rows.push_back(EventRow{step, 2.5 * step, "kind", "text"});
    rows.push_back(ControlRow{step, "pause", step});
    COX_CHECK((*ledger)->Commit(rows).ok());
  }
  auto state = (*ledger)->LoadAll();
  COX_CHECK(state.ok() && (*ledger)->Close().ok());
  return *std::move(state);
}

TEST(BitFlips, InTheLedgerAreFoundOrWithoutConsequence) {
  FaultFs first;
  COX_CHECK(first.MakeDirs("/run").ok());
  SqliteFaultVfs vfs(&first);
  const LedgerState written = WriteLedger();
  ASSERT_OK_AND_ASSIGN(const std::string good, first.ReadAll(kPath));
  ASSERT_FALSE(first.Exists(absl::StrCat(kPath, "-wal")));
  CounterRng rng(1, "flips");
  int64_t found = 0;
  const int64_t flips = testing::FlipCount(2000);
  for (int64_t n = 0; n < flips; ++n) {
    const uint64_t bit = testing::FlipPlace(rng, n, kHeader, good.size());
    FaultFs fs;
    COX_CHECK(fs.MakeDirs("/run").ok());
    Put(fs, kPath, testing::Flipped(good, bit));
    vfs.Use(&fs);
    const auto ledger = OpenSqliteLedger(kPath);
    if (!ledger.ok()) {
      ++found;
      continue;
    }
    const absl::StatusOr<LedgerState> state = (*ledger)->LoadAll();
    if (!state.ok()) {
      ++found;
      continue;
    }
    EXPECT_TRUE(Same(*state, written))
        << "bit " << bit << " of byte " << bit / 8;
    if (HasFailure()) return;
  }
  // The rest hit what nobody reads.
  RecordProperty("found", static_cast<int>(found));
  EXPECT_GT(found, flips / 10);
}

TEST(BitFlips, InASegmentAreFound) {
  FaultFs fs;
  COX_CHECK(fs.MakeDirs("/run").ok());
  std::vector<UnitRow> rows;
  ASSERT_OK_AND_ASSIGN(auto store,
                       SegmentStore::Open(fs, {.dir = "/run/segments"}, rows));
  for (int i = 0; i < 8; ++i) {
    const std::string payload(100 + 50 * static_cast<size_t>(i), 'p');
    UnitRow row;
    row.id = {0, 1, i};
    row.sha256 = Sha256Hex(std::string_view(payload));
    ASSERT_OK_AND_ASSIGN(row.payload, store->Append(payload));
    rows.push_back(row);
  }
  ASSERT_OK(store->Sync());
  const std::string path = "/run/segments/000001.seg";
  ASSERT_OK_AND_ASSIGN(const std::string good, fs.ReadAll(path));
  CounterRng rng(2, "flips");
  for (int64_t n = 0; n < testing::FlipCount(2000); ++n) {
    const uint64_t bit = testing::FlipPlace(rng, n, 256, good.size());
    Put(fs, path, testing::Flipped(good, bit));
    int lost = 0;
    for (const UnitRow& row : rows) {
      const absl::StatusOr<std::string> bytes =
          store->Read(row.payload, row.sha256);
      const bool hit = bit / 8 >= row.payload.offset &&
                       bit / 8 < row.payload.offset + row.payload.length;
      EXPECT_EQ(absl::IsDataLoss(bytes.status()), hit);
      lost += bytes.ok() ? 0 : 1;
    }
    EXPECT_EQ(lost, 1);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace cox
