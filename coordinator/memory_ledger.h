#ifndef COX_COORDINATOR_MEMORY_LEDGER_H_
#define COX_COORDINATOR_MEMORY_LEDGER_H_

// The ledger in memory, for simulation: same contract as the SQLite one, and
// it survives the death of a MemoryLedger because the disk is a separate
// object.

#include <memory>

#include "coordinator/ledger.h"

namespace cox {

struct MemoryDisk {
  Epoch epoch;
  LedgerState state;
  // Commits from now on that still succeed; negative = all.
  int64_t commits_left = -1;
};

// `disk` must outlive the result.
std::unique_ptr<LedgerStore> OpenMemoryLedger(MemoryDisk* disk);

}  // namespace cox

#endif  // COX_COORDINATOR_MEMORY_LEDGER_H_
