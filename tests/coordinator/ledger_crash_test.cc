// The real ledger and the real segments on a disk that loses what a disk may
// lose: a power cut or an error at every operation.

#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/ledger.h"
#include "coordinator/segments.h"
#include "coordinator/wal_check.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "lib/base/hash.h"
#include "tests/base/sqlite_fault_vfs.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

constexpr int kSubsets = 16;  // of the unsynced writes, for each power cut
constexpr char kPath[] = "/run/ledger.db";
constexpr char kSegments[] = "/run/segments";
constexpr int kRounds = 3;        // incarnations
constexpr int kTransactions = 5;  // of each
constexpr int kRowsEach = 3;      // units of a transaction

// What the workload was told.
struct Told {
  int opened = 0;        // incarnations that came up
  int acknowledged = 0;  // transactions, in order
  bool ended = false;    // no error on the way
};

std::string PayloadOf(int transaction, int index) {
  return std::string(100 + 300 * index, static_cast<char>('a' + transaction));
}

// Units 1.. of transaction t: step t + 1.
absl::Status CommitUnits(LedgerStore& ledger, SegmentStore& segments, int t) {
  std::vector<LedgerRow> rows;
  for (int i = 0; i < kRowsEach; ++i) {
    const std::string payload = PayloadOf(t, i);
    UnitRow row;
    row.id = {0, t + 1, i};
    row.policy_hash = "policy";
    row.sha256 = Sha256Hex(std::string_view(payload));
    COX_ASSIGN_OR_RETURN(row.payload, segments.Append(payload));
    rows.push_back(row);
  }
  COX_RETURN_IF_ERROR(segments.Sync(ledger.last_transaction()));
  rows.push_back(MetaRow{"last", std::to_string(t)});
  rows.push_back(EventRow{t + 1, 0, "kind", std::string(700, 'e')});
  return ledger.Commit(rows);
}

absl::Status Work(FaultFs& fs, Told* told) {
  for (int round = 0; round < kRounds; ++round) {
    COX_ASSIGN_OR_RETURN(const auto ledger, OpenSqliteLedger(kPath));
    told->opened = round + 1;
    COX_ASSIGN_OR_RETURN(const LedgerState state, ledger->LoadAll());
    COX_ASSIGN_OR_RETURN(
        const auto segments,
        SegmentStore::Open(fs, {.dir = kSegments, .segment_bytes = 4000},
                           state.units, {}, ledger->last_transaction()));
    for (int i = 0; i < kTransactions; ++i) {
      COX_RETURN_IF_ERROR(CommitUnits(*ledger, *segments, told->acknowledged));
      ++told->acknowledged;
    }
    if (round != 1) {  // one incarnation is killed, its log stays
      COX_RETURN_IF_ERROR(ledger->Close());
    }
  }
  told->ended = true;
  return absl::OkStatus();
}

// Everything that was acknowledged is there, nothing is there in part, the
// next incarnation goes on. What a power cut leaves is no damage.
void CheckRecovered(FaultFs& fs, const Told& told, const std::string& what) {
  SCOPED_TRACE(what);
  const std::string wal = std::string(kPath) + "-wal";
  if (fs.Exists(wal)) {
    ASSERT_OK_AND_ASSIGN(const std::string log, fs.ReadAll(wal));
    ASSERT_OK(CheckWal(log).status());
  }
  ASSERT_OK_AND_ASSIGN(const auto ledger, OpenSqliteLedger(kPath));
  EXPECT_GT(ledger->epoch().value, told.opened);
  ASSERT_OK_AND_ASSIGN(const LedgerState state, ledger->LoadAll());
  const int found = static_cast<int>(state.events.size());
  EXPECT_GE(found, told.acknowledged);
  EXPECT_LE(found, told.acknowledged + 1);
  ASSERT_EQ(state.units.size(), static_cast<size_t>(found * kRowsEach));
  if (found > 0) {
    EXPECT_EQ(state.meta.at("last"), std::to_string(found - 1));
  }
  ASSERT_OK_AND_ASSIGN(
      const auto segments,
      SegmentStore::Open(fs, {.dir = kSegments, .segment_bytes = 4000},
                         state.units, {}, ledger->last_transaction()));
  for (const UnitRow& row : state.units) {
    ASSERT_OK_AND_ASSIGN(const std::string payload,
                         segments->Read(row.payload, row.sha256));
    EXPECT_EQ(payload,
              PayloadOf(static_cast<int>(row.id.step) - 1, row.id.index));
  }
  EXPECT_OK(CommitUnits(*ledger, *segments, found));
}

class LedgerCrash : public ::testing::Test {
 protected:
  LedgerCrash() : vfs_(nullptr) {}

  // A disk with the run's folder, on which the workload fails at its k-th
  // operation.
  std::unique_ptr<FaultFs> Disk() {
    auto fs = std::make_unique<FaultFs>();
    COX_CHECK(fs->MakeDirs("/run").ok() && fs->SyncDir("/").ok());
    vfs_.Use(fs.get());
    return fs;
  }
  int64_t Operations() {
    auto fs = Disk();
    const int64_t before = fs->operations();
    Told told;
    EXPECT_OK(Work(*fs, &told));
    EXPECT_TRUE(told.ended);
    CheckRecovered(*fs, told, "undisturbed");
    return fs->operations() - before;
  }

  SqliteFaultVfs vfs_;
};

TEST_F(LedgerCrash, APowerCutAtAnyOperationLosesNothingThatWasAcknowledged) {
  const int64_t operations = Operations();
  ASSERT_GT(operations, 100);
  for (int64_t k = 1; k <= operations; ++k) {
    auto fs = Disk();
    fs->FailAt(k, absl::InternalError("power"), /*sticky=*/true);
    Told told;
    const absl::Status status = Work(*fs, &told);
    for (int subset = 0; subset < kSubsets; ++subset) {
      auto disk = fs->Clone();
      CounterRng rng(static_cast<uint64_t>(k * kSubsets + subset), "subset");
      disk->Crash(rng);
      vfs_.Use(disk.get());
      CheckRecovered(*disk, told,
                     absl::StrCat("k = ", k, ", subset ", subset, ", ",
                                  status.ToString()));
      if (HasFailure()) return;
    }
  }
}

TEST_F(LedgerCrash, AnErrorAtAnyOperationIsToldAndEndsTheIncarnation) {
  const int64_t operations = Operations();
  for (const absl::Status& error :
       {absl::ResourceExhaustedError("disk full"),
        absl::InternalError("input/output error")}) {
    for (const bool sticky : {true, false}) {
      for (int64_t k = 1; k <= operations; ++k) {
        auto fs = Disk();
        fs->FailAt(k, error, sticky);
        Told told;
        const absl::Status status = Work(*fs, &told);
        // Whoever meets an error stops. Only what leaves nothing to lose,
        // such as the tidying up of the log, may go unsaid.
        if (!status.ok()) {
          EXPECT_TRUE(absl::IsResourceExhausted(status) ||
                      absl::IsInternal(status) || absl::IsUnavailable(status))
              << status;
          EXPECT_FALSE(std::string(status.message()).empty());
        }
        fs->Heal();
        vfs_.Use(fs.get());
        CheckRecovered(*fs, told,
                       absl::StrCat("k = ", k, ", ", status.ToString()));
        if (HasFailure()) return;
        // And the power fails afterwards: a failed sync must not have been
        // taken for a good one.
        CounterRng rng(static_cast<uint64_t>(k), "afterwards");
        fs->Crash(rng);
        vfs_.Use(fs.get());
        ++told.opened;
        told.acknowledged = std::max(told.acknowledged, 0);
        ASSERT_OK_AND_ASSIGN(const auto ledger, OpenSqliteLedger(kPath));
        ASSERT_OK_AND_ASSIGN(const LedgerState state, ledger->LoadAll());
        EXPECT_GE(static_cast<int>(state.events.size()), told.acknowledged + 1)
            << "k = " << k;
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace cox
