#ifndef COX_COORDINATOR_LEDGER_H_
#define COX_COORDINATOR_LEDGER_H_

// What the coordinator remembers. A row is the truth, never a file: whatever
// has no row did not happen (docs/durability.md, "Coordinator and ledger").

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "lib/base/ids.h"
#include "lib/base/status.h"

namespace cox {

using MetricList = std::vector<std::pair<std::string, double>>;

// Where a payload lies: segments/<segment>.seg, bytes [offset, offset+length).
struct PayloadRef {
  int32_t segment = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  bool operator==(const PayloadRef&) const = default;
};

struct MetaRow {  // replaces the value of its key
  std::string key;
  std::string value;
  bool operator==(const MetaRow&) const = default;
};
struct GenerationRow {  // never decreases
  Generation generation;
  bool operator==(const GenerationRow&) const = default;
};
struct UnitRow {  // a submitted unit; never changes
  UnitId id;
  int64_t version_step = 0;  // of the policy that generated it
  std::string policy_hash;
  std::string sha256;  // of the payload
  PayloadRef payload;
  bool operator==(const UnitRow&) const = default;
};
struct BatchRow {  // streaming only: the frozen batch of a step, in order
  int32_t stage = 0;
  int64_t step = 0;
  std::vector<UnitId> units;
  std::vector<UnitId> dropped;  // too stale, excluded by this freeze
  bool operator==(const BatchRow&) const = default;
};
struct VersionRow {
  std::string model;
  PolicyVersion version;
  std::string content_hash;
  std::string manifest;  // canonical text
  bool operator==(const VersionRow&) const = default;
};
struct StepRow {
  int32_t stage = 0;
  int64_t step = 0;
  std::string batch_sha256;
  std::string weight_hash;
  bool skipped = false;
  Generation generation;
  MetricList metrics;
  bool operator==(const StepRow&) const = default;
};
struct CheckpointRow {
  int32_t stage = 0;
  int64_t step = 0;
  std::string directory;
  std::string manifest_sha256;
  std::string weight_hash;
  std::string state_sha256;
  Generation generation;
  bool operator==(const CheckpointRow&) const = default;
};
struct CheckpointRemovedRow {  // deletes a CheckpointRow
  int32_t stage = 0;
  int64_t step = 0;
  bool operator==(const CheckpointRemovedRow&) const = default;
};
struct SegmentRemovedRow {  // a segment file is deleted; its units' rows stay
  int32_t segment = 0;
  uint64_t bytes = 0;  // of payloads
  bool operator==(const SegmentRemovedRow&) const = default;
};
struct UnitFailedRow {  // given up: its unit row has a placeholder's payload
  UnitId id;
  std::string why;
  bool operator==(const UnitFailedRow&) const = default;
};
struct StageRow {  // replaces the stage's row
  int32_t stage = 0;
  std::string state;  // "running", "waiting for labels", "done"
  int64_t total_steps = 0;
  MetricList metrics;  // of its outputs
  bool operator==(const StageRow&) const = default;
};
struct EventRow {
  int64_t number = 0;  // 1, 2, ...
  double wall_time_s = 0;
  std::string kind;
  std::string text;
  bool operator==(const EventRow&) const = default;
};
struct ControlRow {  // an operator's command
  int64_t number = 0;
  std::string command;  // "pause", "resume", "stop", "scale actor=3",
                        // "kl_coef 4=0.02" (kl_control.h)
  int64_t effective_step = 0;
  bool operator==(const ControlRow&) const = default;
};

using LedgerRow =
    std::variant<MetaRow, GenerationRow, UnitRow, BatchRow, VersionRow, StepRow,
                 CheckpointRow, CheckpointRemovedRow, SegmentRemovedRow,
                 UnitFailedRow, StageRow, EventRow, ControlRow>;

// What Load() may leave in the file (left_out.h). By default nothing.
struct LedgerWindow {
  int64_t keep_steps = INT64_MAX;   // CoreOptions::history_steps, and staleness
  int64_t keep_events = INT64_MAX;  // the newest ones
  bool leaves_out() const { return keep_steps != INT64_MAX; }
};

// What was left out, added up.
struct LeftOutRows {
  struct Stage {
    int64_t up_to_step = 0;  // no steps, batches and versions up to here
    int64_t units = 0;
    // Streaming, of a stage that is not done: which ones, in order.
    std::vector<UnitId> unit_ids;
    bool operator==(const Stage&) const = default;
  };
  struct Payloads {  // of one stage in one segment
    uint64_t bytes = 0;
    uint64_t end = 0;       // offset behind the last one
    int64_t last_step = 0;  // that trained or dropped one of them
    int64_t open = 0;       // in no batch
    bool operator==(const Payloads&) const = default;
  };
  std::map<int32_t, Stage> stages;
  std::map<std::pair<int32_t, int32_t>, Payloads> payloads;  // segment, stage
  bool operator==(const LeftOutRows&) const = default;
};

// Everything in the ledger, but what `left_out` stands for; lists in order of
// their keys.
struct LedgerState {
  Generation generation;
  std::map<std::string, std::string> meta;
  std::vector<UnitRow> units;
  std::vector<BatchRow> batches;
  std::vector<VersionRow> versions;
  std::vector<StepRow> steps;
  std::vector<CheckpointRow> checkpoints;
  std::vector<SegmentRemovedRow> removed_segments;
  std::vector<UnitFailedRow> failed_units;
  std::vector<StageRow> stages;
  std::vector<EventRow> events;
  std::vector<ControlRow> controls;
  LeftOutRows left_out;
};

// One transaction of the ledger. Numbers ascend in the order of the commits.
struct TransactionRow {
  int64_t number = 0;
  Epoch epoch;            // of the incarnation that wrote it
  Generation generation;  // known then
  std::string run_id;
  bool operator==(const TransactionRow&) const = default;
};

// Everything in the ledger at one moment, and which transaction each row came
// with: `unit_txn[i]` is that of `state.units[i]`, and so on. 0 = written by a
// build that did not number transactions.
struct LedgerRecord {
  LedgerState state;
  Epoch epoch;  // the newest incarnation's
  std::vector<TransactionRow> transactions;
  std::vector<int64_t> unit_txn;
  std::vector<int64_t> batch_txn;
  std::vector<int64_t> version_txn;
  std::vector<int64_t> step_txn;
  std::vector<int64_t> checkpoint_txn;
  std::vector<int64_t> event_txn;
  std::vector<int64_t> removed_txn;
  std::vector<int64_t> failed_txn;
  // Whether the rows are those that were written: false = the file is damaged.
  bool digest_ok = true;
  uint64_t sum_of_rows = 0;
};

// One incarnation's access. Opening it took the next epoch durably, so an
// older incarnation that still runs cannot write any more (rule 1).
// Thread-compatible; Commit blocks for one synced write.
class LedgerStore {
 public:
  virtual ~LedgerStore() = default;
  virtual Epoch epoch() const = 0;
  // Number of the last committed transaction.
  virtual int64_t last_transaction() const = 0;
  // All rows or none; durable when it returns OK. FAILED_PRECONDITION: a newer
  // epoch exists, exit. ALREADY_EXISTS: a unit, batch, version, step,
  // checkpoint, event or control row of that key is there (a bug of ours).
  // INTERNAL, RESOURCE_EXHAUSTED: the disk failed; exit, never retry (rule 5).
  virtual absl::Status Commit(const std::vector<LedgerRow>& rows) = 0;
  // FAILED_PRECONDITION as above, without writing.
  virtual absl::Status CheckFence() = 0;
  // Reads and checks every row, and keeps those that `options` want.
  virtual absl::StatusOr<LedgerState> Load(const LedgerWindow& options) = 0;
  absl::StatusOr<LedgerState> LoadAll() { return Load(LedgerWindow()); }
  // Leaves a compact file behind. Idempotent.
  virtual absl::Status Close() = 0;
};

// `path` = run_dir/ledger.db. FAILED_PRECONDITION when the pragmas that make
// commits durable do not hold (WAL, synchronous FULL); UNAVAILABLE when another
// process keeps the file locked.
absl::StatusOr<std::unique_ptr<LedgerStore>> OpenSqliteLedger(
    const std::string& path);

// Reads the ledger of a run, also of a live one, without writing a byte of it:
// a read transaction where there is a write-ahead log, a plain read of the file
// where there is none. NOT_FOUND: no ledger. FAILED_PRECONDITION: the tables
// are of another format. DATA_LOSS: damaged.
absl::StatusOr<LedgerRecord> ReadSqliteLedger(const std::string& path);

}  // namespace cox

#endif  // COX_COORDINATOR_LEDGER_H_
