#ifndef COX_COORDINATOR_MEMORY_LEDGER_H_
#define COX_COORDINATOR_MEMORY_LEDGER_H_

// The ledger in memory, for simulation: same contract as the SQLite one, and
// it survives the death of a MemoryLedger because the disk is a separate
// object.

#include <cstdint>
#include <memory>
#include <vector>

#include "coordinator/ledger.h"
#include "lib/base/rng.h"

namespace cox {

struct MemoryDisk {
  Epoch epoch;
  LedgerState state;
  int64_t transactions = 0;
  // Commits from now on that still succeed; negative = all.
  int64_t commits_left = -1;
  // Rules 1 and 2 of docs/durability.md; false only in the test that shows
  // that the simulator notices. Without `synced` a power loss drops the newest
  // transactions, as SQLite's synchronous=NORMAL may.
  bool fenced = true;
  bool synced = true;
  std::vector<std::vector<LedgerRow>> unsynced;
  LedgerState durable;  // without `synced`: the state before `unsynced`

  // Power loss: keeps any number of the unsynced transactions, oldest first.
  void Crash(CounterRng& rng);
  // Whether a power loss now would keep the unit's row.
  bool IsDurable(const UnitId& unit) const;
};

// `disk` must outlive the result.
std::unique_ptr<LedgerStore> OpenMemoryLedger(MemoryDisk* disk);

}  // namespace cox

#endif  // COX_COORDINATOR_MEMORY_LEDGER_H_
