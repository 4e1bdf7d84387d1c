#include "coordinator/memory_ledger.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace cox {
namespace {

auto Key(const UnitRow& r) { return r.id; }
auto Key(const BatchRow& r) { return std::make_tuple(r.stage, r.step); }
auto Key(const VersionRow& r) { return std::make_tuple(r.model, r.version); }
auto Key(const StepRow& r) { return std::make_tuple(r.stage, r.step); }
auto Key(const CheckpointRow& r) { return std::make_tuple(r.stage, r.step); }
auto Key(const StageRow& r) { return r.stage; }
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

class MemoryLedger : public LedgerStore {
 public:
  explicit MemoryLedger(MemoryDisk* disk) : disk_(disk) {
    ++disk_->epoch.value;
    epoch_ = disk_->epoch;
  }
  Epoch epoch() const override { return epoch_; }
  absl::Status CheckFence() override {
    if (disk_->epoch != epoch_) {
      return absl::FailedPreconditionError(
          absl::StrCat("ledger: epoch ", disk_->epoch.value,
                       " took over from ", epoch_.value));
    }
    return absl::OkStatus();
  }
  absl::Status Commit(const std::vector<LedgerRow>& rows) override {
    COX_RETURN_IF_ERROR(CheckFence());
    if (disk_->commits_left == 0) {
      return absl::InternalError("ledger: write failed");
    }
    // On a copy only when something can fail half-way: one row cannot.
    if (rows.size() == 1) {
      COX_RETURN_IF_ERROR(std::visit(Writer{disk_->state}, rows[0]));
    } else {
      LedgerState next = disk_->state;
      for (const LedgerRow& row : rows) {
        COX_RETURN_IF_ERROR(std::visit(Writer{next}, row));
      }
      disk_->state = std::move(next);
    }
    if (disk_->commits_left > 0) {
      --disk_->commits_left;
    }
    return absl::OkStatus();
  }
  absl::StatusOr<LedgerState> Load() override { return disk_->state; }
  absl::Status Close() override { return absl::OkStatus(); }

 private:
  MemoryDisk* const disk_;
  Epoch epoch_;
};

}  // namespace

std::unique_ptr<LedgerStore> OpenMemoryLedger(MemoryDisk* disk) {
  return std::make_unique<MemoryLedger>(disk);
}

}  // namespace cox
