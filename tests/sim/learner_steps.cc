// Steps, checkpoints and retention of the simulated learners.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/checkpoint.h"
#include "lib/base/hash.h"
#include "tests/sim/learner_process.h"

namespace cox::sim {
namespace {

constexpr Ns kCollectiveTimeout = 8 * kSecond;
constexpr Ns kPoll = 4 * kSecond;

// A file system that skips the syncs of rule 17.
class UnsyncedFs : public Fs {
 public:
  explicit UnsyncedFs(Fs& fs) : fs_(fs) {}
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path, bool exclusive) override {
    COX_ASSIGN_OR_RETURN(auto file, fs_.Create(path, exclusive));
    return std::make_unique<File>(std::move(file));
  }
  absl::StatusOr<std::unique_ptr<WritableFile>> OpenAppend(
      const std::string& path) override {
    return fs_.OpenAppend(path);
  }
  absl::StatusOr<std::string> ReadAll(const std::string& path) override {
    return fs_.ReadAll(path);
  }
  absl::StatusOr<std::string> ReadRange(const std::string& path,
                                        uint64_t offset,
                                        uint64_t length) override {
    return fs_.ReadRange(path, offset, length);
  }
  absl::StatusOr<uint64_t> FileSize(const std::string& path) override {
    return fs_.FileSize(path);
  }
  bool Exists(const std::string& path) override { return fs_.Exists(path); }
  absl::StatusOr<std::vector<std::string>> List(
      const std::string& dir) override {
    return fs_.List(dir);
  }
  absl::Status MakeDirs(const std::string& path, int mode) override {
    return fs_.MakeDirs(path, mode);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return fs_.Rename(from, to);
  }
  absl::Status RemoveAll(const std::string& path) override {
    return fs_.RemoveAll(path);
  }
  absl::Status Truncate(const std::string& path, uint64_t size) override {
    return fs_.Truncate(path, size);
  }
  absl::Status SyncDir(const std::string& dir) override {
    return fs_.SyncDir(dir);
  }

 private:
  class File : public WritableFile {
   public:
    explicit File(std::unique_ptr<WritableFile> file)
        : file_(std::move(file)) {}
    absl::Status Append(std::string_view data) override {
      return file_->Append(data);
    }
    absl::Status Sync() override { return absl::OkStatus(); }
    absl::Status Close() override { return file_->Close(); }

   private:
    std::unique_ptr<WritableFile> file_;
  };
  Fs& fs_;
};

}  // namespace

void LearnerProcess::TakeBatch(int64_t step) {
  using Batch = BatchReply;
  Call<Batch>(
      kPoll,
      [this, step](CoordinatorProcess& coordinator, const CoreCaller& caller,
                   ReplyTo<Batch> reply) {
        coordinator.Poll<Batch>(
            kPoll, Batch(),
            [this, &coordinator, caller, step, stage = assignment_.stage](
                CoordinatorCore& core) -> absl::StatusOr<std::optional<Batch>> {
              COX_ASSIGN_OR_RETURN(std::optional<Batch> batch,
                                   core.TakeBatch(caller, stage, step));
              world_.checker.OnServed(caller.generation,
                                      core.generation().value);
              if (batch.has_value()) {
                for (const BatchUnit& unit : batch->units) {
                  COX_RETURN_IF_ERROR(coordinator.turn()
                                          .segments()
                                          .Read(unit.payload, unit.sha256)
                                          .status());
                }
              }
              return batch;
            },
            std::move(reply));
      },
      [this, step](const absl::StatusOr<Batch>& batch) {
        if (!batch.ok()) {
          return OnFatal(batch.status());
        }
        if (batch->units.empty()) {
          return TakeBatch(step);
        }
        batch_sha256_ = batch->batch_sha256;
        Done();
      });
}

// The collective: goes on when all ranks of the generation are here.
void LearnerProcess::Meet(const std::string& point,
                          std::function<void()> then) {
  met_.insert(point);
  waiting_at_ = point;
  then_ = std::move(then);
  bool all = true;
  for (int32_t r = 0; r < world_.world_size; ++r) {
    LearnerProcess* peer = world_.Rank(r);
    all = all && peer->alive && peer->generation_ == generation_ &&
          peer->met_.contains(point);
  }
  if (all) {
    for (int32_t r = 0; r < world_.world_size; ++r) {
      LearnerProcess* peer = world_.Rank(r);
      if (peer->waiting_at_ == point && peer->then_ != nullptr) {
        peer->waiting_at_.clear();
        peer->After(1, std::exchange(peer->then_, nullptr));
      }
    }
    return;
  }
  After(kCollectiveTimeout, [this, point] {
    if (waiting_at_ == point) {
      Kill("the collective timed out");
    }
  });
}

void LearnerProcess::TrainStep(int64_t step) {
  if (!world_.plan.stage(assignment_.stage).has_units()) {
    batch_sha256_ = DataHash(assignment_.stage, step);
  }
  Meet(absl::StrCat("train ", assignment_.stage, " ", step), [this] {
    After(world_.Jitter(60 * kMs, 200 * kMs), [this] {
      const int64_t stray = batches_since_start_++;
      state_.Step(batch_sha256_, world_.rules.closed_state ? 0 : stray);
      Done();
    });
  });
}

bool LearnerProcess::WriteCheckpointFiles(const std::string& directory,
                                          const TrainerState& state) {
  TrainerState kept = state;
  std::erase_if(kept.older, [&](const auto& entry) {
    return !lineage_->NeedsVersion(entry.first, state.step);
  });
  CheckpointContents contents;
  contents.state = kept.Save();
  UnsyncedFs unsynced(world_.fs);
  Fs& fs =
      world_.rules.files_before_name ? static_cast<Fs&>(world_.fs) : unsynced;
  absl::StatusOr<WrittenCheckpoint> written =
      WriteCheckpoint(fs, directory,
                      {.run_id = "r",
                       .config_hash = "c",
                       .stage = assignment_.stage,
                       .step = state.step,
                       .generation = generation_,
                       .batch_sha256 = "b",
                       .weight_hash = state.weights},
                      contents);
  if (written.ok()) {
    const auto read_back =
        VerifyCheckpoint(world_.fs, directory, written->manifest_sha256);
    if (!read_back.ok()) {
      written = read_back.status();
    }
  }
  if (world_.AfterDiskUse(*this)) {
    return false;
  }
  if (!written.ok()) {
    Kill("the checkpoint cannot be written");
    return false;
  }
  checkpoint_ = CheckpointData{state.step, directory, written->manifest_sha256,
                               written->state_sha256};
  checkpoint_weights_ = state.weights;
  return true;
}

void LearnerProcess::BeginCheckpoint(int64_t step) {
  Call<std::string>(
      0,
      [this, step](CoordinatorProcess& coordinator, const CoreCaller& caller,
                   ReplyTo<std::string> reply) {
        coordinator.Unary<std::string>(
            [caller, step, stage = assignment_.stage](CoordinatorCore& core) {
              return core.BeginCheckpoint(caller, stage, step);
            },
            std::move(reply));
      },
      [this](const absl::StatusOr<std::string>& directory) {
        if (!directory.ok()) {
          return OnFatal(directory.status());
        }
        if (!world_.checkpoint_beside) {
          if (WriteCheckpointFiles(*directory, state_)) {
            Done();
          }
          return;
        }
        if (!world_.rules.lineage.row_after_write) {
          checkpoint_ = CheckpointData{
              state_.step, *directory,
              Sha256Hex(std::string_view("manifest to be")), "state to be"};
          checkpoint_weights_ = state_.weights;
        }
        After(world_.Jitter(20 * kMs, 600 * kMs), [this, directory = *directory,
                                                   state = state_] {
          if (lineage_.has_value() && WriteCheckpointFiles(directory, state) &&
              world_.rules.lineage.row_after_write) {
            const bool waits =
                action_.kind == LineageAction::Kind::kAwaitCheckpoint;
            lineage_->OnCheckpointWritten();
            if (waits) {
              Continue();
            }
          }
        });
        Done();
      });
}

void LearnerProcess::SendCommit(const CommitStepEvent& event,
                                std::function<void()> acknowledged) {
  Call<bool>(
      0,
      [this, event](CoordinatorProcess& coordinator, const CoreCaller& caller,
                    ReplyTo<bool> reply) {
        CommitStepEvent now = event;
        now.caller = caller;
        coordinator.Unary<bool>(
            [this, now](CoordinatorCore& core) {
              absl::StatusOr<bool> replayed = core.CommitStep(now);
              if (replayed.ok()) {
                world_.checker.OnServed(now.caller.generation,
                                        core.generation().value);
              }
              return replayed;
            },
            [this, now,
             reply = std::move(reply)](const absl::StatusOr<bool>& replayed) {
              if (replayed.ok()) {
                world_.checker.OnStepAck(now.stage, now.step,
                                         now.caller.generation);
              }
              reply(replayed);
            });
      },
      [this, acknowledged = std::move(acknowledged)](
          const absl::StatusOr<bool>& committed) {
        if (!committed.ok()) {
          return OnFatal(committed.status());
        }
        acknowledged();
      });
}

void LearnerProcess::Commit(const LineageAction& action) {
  const std::string verdict =
      absl::StrCat("verdict ", assignment_.stage, " ", action.step);
  if (rank_ != 0) {
    return Meet(verdict, [this] { Done(); });
  }
  CommitStepEvent event;
  event.stage = assignment_.stage;
  event.step = action.step;
  event.batch_sha256 = batch_sha256_;
  event.weight_hash = state_.weights;
  if (action.with_checkpoint) {
    event.checkpoint = checkpoint_;
  }
  if (!world_.rules.lineage.await_commit) {
    SendCommit(event, [] {});
    return Meet(verdict, [this] { Done(); });
  }
  SendCommit(event, [this, verdict] { Meet(verdict, [this] { Done(); }); });
}

void LearnerProcess::Retain(int64_t /*step*/) {
  using Folders = std::vector<std::string>;
  CommitCheckpointEvent event;
  event.stage = assignment_.stage;
  event.checkpoint = *checkpoint_;
  event.weight_hash = checkpoint_weights_;
  Call<Folders>(
      0,
      [event](CoordinatorProcess& coordinator, const CoreCaller& caller,
              ReplyTo<Folders> reply) {
        CommitCheckpointEvent now = event;
        now.caller = caller;
        coordinator.Unary<Folders>(
            [now](CoordinatorCore& core) { return core.CommitCheckpoint(now); },
            std::move(reply));
      },
      [this](const absl::StatusOr<Folders>& surplus) {
        if (!surplus.ok()) {
          return OnFatal(surplus.status());
        }
        for (const std::string& folder : *surplus) {
          // What stays behind costs space only.
          static_cast<void>(RemoveCheckpoint(world_.fs, folder));
        }
        if (!world_.AfterDiskUse(*this)) {
          Done();
        }
      });
}

}  // namespace cox::sim
