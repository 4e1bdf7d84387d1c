#ifndef COX_CLI_CHAOS_COMPARE_H_
#define COX_CLI_CHAOS_COMPARE_H_

// Whether a run under faults left the same behind as an undisturbed one.

#include <string>
#include <vector>

#include "coordinator/ledger.h"
#include "lib/base/status.h"

namespace cox {

// What the run has recorded; changes nothing.
absl::StatusOr<LedgerState> ReadLedgerOf(const std::string& run_dir);

// Steps (weights, batch, skipped), units (version, result), and checkpoints
// of equal steps (state) that differ, are missing or are too many; at most
// `limit` lines. Empty = equal.
std::vector<std::string> CompareLedgers(const LedgerState& calm,
                                        const LedgerState& hurt,
                                        size_t limit = 10);

// For `streaming`, where which units exist depends on timing: every unit is in
// at most one batch, every batch consists of recorded units, every step has
// one. Empty = so it is.
std::vector<std::string> CheckStreamingLedger(const LedgerState& state,
                                              size_t limit = 10);

}  // namespace cox

#endif  // COX_CLI_CHAOS_COMPARE_H_
