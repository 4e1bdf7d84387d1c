#ifndef COX_COORDINATOR_LEDGER_AUDIT_H_
#define COX_COORDINATOR_LEDGER_AUDIT_H_

// `cox ledger verify`: what must hold in a ledger whatever was killed and
// whenever (docs/durability.md, "Proving it"), computed from its rows, its
// payloads and its checkpoints alone. Reads only.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/ledger_reader.h"

namespace cox {

enum class Invariant {
  kStepsContiguous,
  kUnitInOneStep,
  kStepUnits,
  kPayloadHash,
  kBatchHash,
  kUnitVersion,
  kStaleness,
  kPublishedWeights,
  kWeightHashes,
  kGenerations,
  kEpochs,
  kRunId,
  kCheckpointFiles,
  kCheckpointOfStep,
  kConservation,
  kNothingDeleted,
  kFailedUnits,
  kCount,
};

struct AuditFinding {
  Invariant invariant = Invariant::kCount;
  std::string name;    // "steps-contiguous"
  std::string text;    // what must hold
  std::string things;  // what was counted: "steps"
  int64_t checked = 0;
  int64_t violations = 0;
  // The first offending row: "ppo step 3 unit s0.3.1: expected ..., found ...".
  std::string first;
};

struct AuditReport {
  std::vector<AuditFinding> findings;  // one per Invariant, in their order
  int64_t payload_bytes = 0;           // read and hashed
  int64_t retired_payloads = 0;        // deleted by retention
  bool ok() const;
  const AuditFinding& of(Invariant invariant) const {
    return findings[static_cast<size_t>(invariant)];
  }
};

// One finding per invariant, nothing counted yet (audit_report.cc).
AuditReport EmptyAuditReport();

// What the files of a checkpoint say, after every one of them was hashed.
struct CheckpointFacts {
  std::string run_id;
  int32_t stage = 0;
  int64_t step = 0;
  int64_t generation = 0;
  std::string batch_sha256;
  std::string weight_hash;   // of the manifest
  std::string trained_hash;  // computed from the trained model's tensors
  std::string state_sha256;
  std::vector<std::string> files;
};

struct AuditOptions {
  // Hashes a checkpoint's files: DATA_LOSS or NOT_FOUND when they differ.
  // Nothing = its row is gone by now (retention of a live run). Not given: the
  // files are not looked at.
  std::function<absl::StatusOr<std::optional<CheckpointFacts>>(
      const CheckpointRow& row)>
      checkpoint;
  // Reads no payloads: a quick look at rows only.
  bool skip_payloads = false;
  // Called now and then: bytes of payloads hashed, of how many.
  std::function<void(int64_t done, int64_t total)> progress;
};

AuditReport AuditLedger(const RecordedRun& run, const AuditOptions& options);

}  // namespace cox

#endif  // COX_COORDINATOR_LEDGER_AUDIT_H_
