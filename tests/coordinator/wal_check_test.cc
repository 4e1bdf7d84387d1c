// Damage in ledger.db-wal between a kill and the next start: nothing that was
// acknowledged disappears without a word.

#include "coordinator/wal_check.h"

#include <string>

#include "coordinator/ledger.h"
#include "coordinator/segments.h"
#include "gmock/gmock.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kTransactions = 12;
constexpr size_t kFrame = 24 + 4096;

// What a coordinator leaves that was killed after its last acknowledgement.
struct Killed {
  std::string db;
  std::string wal;
  LedgerState state;
};

std::vector<LedgerRow> Rows(int t) {
  UnitRow unit;
  unit.id = {0, t + 1, 0};
  unit.policy_hash = "policy";
  unit.sha256 = Sha256Hex(std::string_view(absl::StrCat("payload ", t)));
  unit.payload = {1, static_cast<uint64_t>(t) * 10, 10};
  return {unit, MetaRow{"last", absl::StrCat(t)},
          EventRow{t + 1, 0, "kind", std::string(500, 'e')}};
}

Killed Kill() {
  TempDir dir;
  Fs& fs = Fs::Real();
  const std::string path = JoinPath(dir.path(), "ledger.db");
  auto ledger = OpenSqliteLedger(path);
  EXPECT_OK(ledger.status());
  for (int t = 0; t < kTransactions; ++t) {
    EXPECT_OK((*ledger)->Commit(Rows(t)));
  }
  Killed killed;
  killed.db = *fs.ReadAll(path);
  killed.wal = *fs.ReadAll(path + "-wal");
  killed.state = *(*ledger)->LoadAll();
  EXPECT_GT(killed.wal.size(), 32 + 3 * kTransactions * kFrame);
  return killed;
}

class WalCheck : public ::testing::Test {
 protected:
  static const Killed& killed() {
    static const Killed* const killed = new Killed(Kill());
    return *killed;
  }
  // Opens the ledger with `wal` as its log.
  absl::StatusOr<LedgerState> Open(const std::string& wal) {
    TempDir dir;
    const std::string path = JoinPath(dir.path(), "ledger.db");
    auto write = [](const std::string& to, const std::string& bytes) {
      auto file = Fs::Real().Create(to, /*exclusive=*/true);
      COX_CHECK(file.ok() && (*file)->Append(bytes).ok());
    };
    write(path, killed().db);
    write(path + "-wal", wal);
    COX_ASSIGN_OR_RETURN(const auto ledger, OpenSqliteLedger(path));
    last_ = ledger->last_transaction();
    return ledger->LoadAll();
  }
  static size_t LastTransaction() {  // its first byte
    const std::string& wal = killed().wal;
    size_t begin = 32;
    for (size_t at = 32; at + kFrame < wal.size(); at += kFrame) {
      const bool end = wal.substr(at + 4, 4) != std::string(4, '\0');
      begin = end ? at + kFrame : begin;
    }
    return begin;
  }
  int64_t last_ = 0;
};

TEST_F(WalCheck, ASoundLogNeedsNothing) {
  ASSERT_OK_AND_ASSIGN(const auto fixes, CheckWal(killed().wal));
  EXPECT_THAT(fixes, IsEmpty());
  ASSERT_OK_AND_ASSIGN(const LedgerState state, Open(killed().wal));
  EXPECT_EQ(state.units, killed().state.units);
  EXPECT_EQ(last_, kTransactions);
  EXPECT_OK(CheckWal("").status());
  EXPECT_OK(CheckWal(std::string(9000, '\0')).status());
}

// One bit in headers byte by byte, in pages every 37th, in every transaction:
// put right, or told; never taken for the end of the log.
TEST_F(WalCheck, AFlippedBitIsPutRightOrTold) {
  const std::string& wal = killed().wal;
  int64_t flips = 0;
  int64_t told = 0;
  for (size_t at = 0; at < wal.size();) {
    std::string damaged = wal;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (flips % 8)));
    const auto fixes = CheckWal(damaged);
    ++flips;
    if (!fixes.ok()) {
      ++told;
      EXPECT_THAT(fixes.status(), StatusIs(absl::StatusCode::kDataLoss)) << at;
    } else {
      for (const WalFix& fix : *fixes) {
        damaged.replace(fix.offset, fix.bytes.size(), fix.bytes);
      }
      EXPECT_TRUE(damaged == wal) << at;
    }
    const size_t in_frame = at < 32 ? 0 : (at - 32) % kFrame;
    at += in_frame < 24 || in_frame > kFrame - 16 ? 1 : 37;
  }
  EXPECT_GT(flips, 5000);
  EXPECT_LT(told, flips / 2);
  RecordProperty("told", std::to_string(told));
}

TEST_F(WalCheck, TheLedgerOpensWithEverythingOrNotAtAll) {
  const std::string& wal = killed().wal;
  CounterRng rng(5, "flips");
  int healed = 0;
  for (int i = 0; i < 150; ++i) {
    // A third in the last transaction, where nothing lies behind.
    const size_t from = i % 3 == 0 ? LastTransaction() : 0;
    const size_t at = from + rng.NextBelow(wal.size() - from);
    std::string damaged = wal;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << rng.NextBelow(8)));
    const auto state = Open(damaged);
    if (!state.ok()) {
      EXPECT_THAT(state.status(), StatusIs(absl::StatusCode::kDataLoss)) << at;
      continue;
    }
    EXPECT_TRUE(state->units == killed().state.units) << at;
    EXPECT_TRUE(state->events == killed().state.events) << at;
    EXPECT_EQ(last_, kTransactions);
    ++healed;
  }
  EXPECT_GT(healed, 75);
}

// A sector of nonsense cannot be put right: the ledger says so, unless it is
// in the last transaction, which a power loss may have torn.
TEST_F(WalCheck, ALostSectorIsTold) {
  const std::string& wal = killed().wal;
  const size_t last = LastTransaction();
  CounterRng rng(6, "sectors");
  int told = 0;
  int opened = 0;
  for (size_t at = 32; at + 512 <= wal.size(); at += 512 * 3) {
    std::string damaged = wal;
    for (size_t i = 0; i < 512; ++i) {
      damaged[at + i] = static_cast<char>(rng.NextBelow(256));
    }
    const absl::Status status = CheckWal(damaged).status();
    if (at < last - kFrame) {
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss)) << at;
      ++told;
      if (told % 10 == 0) {
        EXPECT_THAT(Open(damaged).status(),
                    StatusIs(absl::StatusCode::kDataLoss,
                             HasSubstr("Put back ledger.db")));
        ++opened;
      }
    } else if (at >= last) {
      EXPECT_OK(status) << at;
    }
  }
  EXPECT_GT(told, 50);
  EXPECT_GT(opened, 3);
}

TEST_F(WalCheck, ATornEndIsNoDamage) {
  const std::string& wal = killed().wal;
  for (size_t size = 0; size < wal.size(); size += 511) {
    EXPECT_OK(CheckWal(wal.substr(0, size)).status()) << size;
  }
}

// Without its log, or with an older copy of itself, the ledger ends earlier
// than what the segments say was committed.
TEST_F(WalCheck, ALogThatIsGoneIsTold) {
  TempDir dir;
  const std::string segments = JoinPath(dir.path(), "segments");
  {
    ASSERT_OK_AND_ASSIGN(auto store,
                         SegmentStore::Open(Fs::Real(), {.dir = segments}, {}));
    for (int t = 0; t < kTransactions; ++t) {
      ASSERT_OK(store->Append(absl::StrCat("payload ", t)).status());
      ASSERT_OK(store->Sync(t));  // before the row: t of them are committed
    }
  }
  ASSERT_OK_AND_ASSIGN(const LedgerState none, Open(""));
  EXPECT_THAT(none.units, IsEmpty());
  const auto before = Fs::Real().List(segments);
  EXPECT_THAT(
      SegmentStore::Open(Fs::Real(), {.dir = segments}, none.units, {}, last_)
          .status(),
      StatusIs(absl::StatusCode::kDataLoss,
               HasSubstr("transaction 11 was committed, the ledger "
                         "ends with 0")));
  EXPECT_EQ(*Fs::Real().List(segments), *before) << "nothing is deleted";
  ASSERT_OK_AND_ASSIGN(const LedgerState whole, Open(killed().wal));
  EXPECT_OK(SegmentStore::Open(Fs::Real(), {.dir = segments}, {}, {}, last_)
                .status());
}

}  // namespace
}  // namespace cox
