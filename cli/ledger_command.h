#ifndef COX_CLI_LEDGER_COMMAND_H_
#define COX_CLI_LEDGER_COMMAND_H_

#include <cstdint>
#include <string>

#include "coordinator/ledger_audit.h"

namespace cox {

// What `cox ledger verify` does with a checkpoint row: hashes every file of it
// and computes the hash of its trained model. Nothing when the row is gone by
// now, because a live run removed it.
absl::StatusOr<std::optional<CheckpointFacts>> ReadCheckpointFacts(
    const RecordedRun& run, const CheckpointRow& row);

// `cox ledger verify RUN`: a line per invariant. Exit code 1 when one is
// violated or the ledger is damaged. Changes nothing.
int VerifyLedger(const std::string& run_dir, bool json);

struct LedgerShowOptions {
  std::string run_dir;
  std::string stage;  // "" = all
  int64_t step = -1;  // < 0 = all
  bool units = false;
  bool events = false;
  bool versions = false;
  bool checkpoints = false;  // none of these: steps
  bool json = false;
};
int ShowLedger(const LedgerShowOptions& options);

}  // namespace cox

#endif  // COX_CLI_LEDGER_COMMAND_H_
