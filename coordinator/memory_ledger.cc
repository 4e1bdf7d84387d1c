#include "coordinator/memory_ledger.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "coordinator/left_out.h"

namespace cox {
namespace {

auto Key(const UnitRow& r) { return r.id; }
auto Key(const BatchRow& r) { return std::make_tuple(r.stage, r.step); }
auto Key(const VersionRow& r) { return std::make_tuple(r.model, r.version); }
auto Key(const StepRow& r) { return std::make_tuple(r.stage, r.step); }
auto Key(const CheckpointRow& r) { return std::make_tuple(r.stage, r.step); }
auto Key(const StageRow& r) { return r.stage; }
auto Key(const SegmentRemovedRow& r) { return r.segment; }
auto Key(const UnitFailedRow& r) { return r.id; }
auto Key(const EventRow& r) { return r.number; }
auto Key(const ControlRow& r) { return r.number; }

// The place of `row` in the list, which is sorted by key.
template <typename Row>
auto Place(std::vector<Row>& rows, const Row& row) {
  return std::lower_bound(
      rows.begin(), rows.end(), row,
      [](const Row& a, const Row& b) { return Key(a) < Key(b); });
}

template <typename Row>
absl::Status Insert(std::vector<Row>& rows, const Row& row) {
  auto place = Place(rows, row);
  if (place != rows.end() && Key(*place) == Key(row)) {
    return absl::AlreadyExistsError("ledger: a row of this key exists");
  }
  rows.insert(place, row);
  return absl::OkStatus();
}

struct Writer {
  LedgerState& state;
  absl::Status operator()(const MetaRow& row) {
    state.meta[row.key] = row.value;
    return absl::OkStatus();
  }
  absl::Status operator()(const GenerationRow& row) {
    state.generation = row.generation;
    return absl::OkStatus();
  }
  absl::Status operator()(const UnitRow& row) {
    return Insert(state.units, row);
  }
  absl::Status operator()(const BatchRow& row) {
    return Insert(state.batches, row);
  }
  absl::Status operator()(const VersionRow& row) {
    return Insert(state.versions, row);
  }
  absl::Status operator()(const StepRow& row) {
    return Insert(state.steps, row);
  }
  absl::Status operator()(const CheckpointRow& row) {
    return Insert(state.checkpoints, row);
  }
  absl::Status operator()(const CheckpointRemovedRow& row) {
    std::erase_if(state.checkpoints, [&](const CheckpointRow& c) {
      return c.stage == row.stage && c.step == row.step;
    });
    return absl::OkStatus();
  }
  absl::Status operator()(const SegmentRemovedRow& row) {
    return Insert(state.removed_segments, row);
  }
  absl::Status operator()(const UnitFailedRow& row) {
    return Insert(state.failed_units, row);
  }
  absl::Status operator()(const StageRow& row) {
    auto place = Place(state.stages, row);
    if (place != state.stages.end() && place->stage == row.stage) {
      *place = row;
    } else {
      state.stages.insert(place, row);
    }
    return absl::OkStatus();
  }
  absl::Status operator()(const EventRow& row) {
    return Insert(state.events, row);
  }
  absl::Status operator()(const ControlRow& row) {
    return Insert(state.controls, row);
  }
};

// Whether a row of this key is there already, or among the first `count` of
// `rows`. Rows that replace or delete never collide.
struct Collides {
  LedgerState& state;
  const std::vector<LedgerRow>& rows;
  size_t count;

  template <typename Row>
  bool In(std::vector<Row>& stored, const Row& row) const {
    auto place = Place(stored, row);
    if (place != stored.end() && Key(*place) == Key(row)) {
      return true;
    }
    for (size_t i = 0; i < count; ++i) {
      const Row* other = std::get_if<Row>(&rows[i]);
      if (other != nullptr && Key(*other) == Key(row)) {
        return true;
      }
    }
    return false;
  }
  bool operator()(const MetaRow&) const { return false; }
  bool operator()(const GenerationRow&) const { return false; }
  bool operator()(const StageRow&) const { return false; }
  bool operator()(const CheckpointRemovedRow&) const { return false; }
  bool operator()(const UnitRow& row) const { return In(state.units, row); }
  bool operator()(const BatchRow& row) const { return In(state.batches, row); }
  bool operator()(const VersionRow& row) const {
    return In(state.versions, row);
  }
  bool operator()(const StepRow& row) const { return In(state.steps, row); }
  bool operator()(const CheckpointRow& row) const {
    return In(state.checkpoints, row);
  }
  bool operator()(const SegmentRemovedRow& row) const {
    return In(state.removed_segments, row);
  }
  bool operator()(const UnitFailedRow& row) const {
    return In(state.failed_units, row);
  }
  bool operator()(const EventRow& row) const { return In(state.events, row); }
  bool operator()(const ControlRow& row) const {
    return In(state.controls, row);
  }
};

class MemoryLedger : public LedgerStore {
 public:
  explicit MemoryLedger(MemoryDisk* disk) : disk_(disk) {
    ++disk_->epoch.value;
    epoch_ = disk_->epoch;
  }
  Epoch epoch() const override { return epoch_; }
  int64_t last_transaction() const override { return disk_->transactions; }
  absl::Status CheckFence() override {
    if (disk_->epoch != epoch_ && disk_->fenced) {
      return absl::FailedPreconditionError(
          absl::StrCat("ledger: epoch ", disk_->epoch.value, " took over from ",
                       epoch_.value));
    }
    return absl::OkStatus();
  }
  absl::Status Commit(const std::vector<LedgerRow>& rows) override {
    COX_RETURN_IF_ERROR(CheckFence());
    for (size_t i = 0; i < rows.size(); ++i) {
      if (std::visit(Collides{disk_->state, rows, i}, rows[i])) {
        return absl::AlreadyExistsError("ledger: a row of this key exists");
      }
    }
    if (disk_->commits_left == 0) {
      return absl::InternalError("ledger: write failed");
    }
    if (!disk_->synced) {
      if (disk_->unsynced.empty()) {
        disk_->durable = disk_->state;
      }
      disk_->unsynced.push_back(rows);
    }
    for (const LedgerRow& row : rows) {
      COX_RETURN_IF_ERROR(std::visit(Writer{disk_->state}, row));
    }
    if (disk_->commits_left > 0) {
      --disk_->commits_left;
    }
    ++disk_->transactions;
    return absl::OkStatus();
  }
  absl::StatusOr<LedgerState> Load(const LedgerWindow& options) override {
    return LeaveOut(disk_->state, options);
  }
  absl::Status Close() override { return absl::OkStatus(); }

 private:
  MemoryDisk* const disk_;
  Epoch epoch_;
};

}  // namespace

void MemoryDisk::Crash(CounterRng& rng) {
  if (unsynced.empty()) {
    return;
  }
  const uint64_t kept = rng.NextBelow(unsynced.size() + 1);
  state = std::move(durable);
  transactions -= static_cast<int64_t>(unsynced.size() - kept);
  for (size_t i = 0; i < kept; ++i) {
    for (const LedgerRow& row : unsynced[i]) {
      COX_CHECK(std::visit(Writer{state}, row).ok());
    }
  }
  unsynced.clear();
}

bool MemoryDisk::IsDurable(const UnitId& unit) const {
  const std::vector<UnitRow>& units =
      unsynced.empty() ? state.units : durable.units;
  const auto place = std::lower_bound(
      units.begin(), units.end(), unit,
      [](const UnitRow& row, const UnitId& id) { return row.id < id; });
  return place != units.end() && place->id == unit;
}

std::unique_ptr<LedgerStore> OpenMemoryLedger(MemoryDisk* disk) {
  return std::make_unique<MemoryLedger>(disk);
}

}  // namespace cox
