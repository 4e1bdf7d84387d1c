#include "tests/sim/learner_process.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/checkpoint.h"
#include "lib/base/hash.h"

namespace cox::sim {
namespace {

constexpr Ns kCollectiveTimeout = 8 * kSecond;
constexpr Ns kPoll = 4 * kSecond;
constexpr int64_t kCheckpointEvery = 2;

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
  absl::Status Rename(const std::string& from,
                      const std::string& to) override {
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

LearnerProcess::LearnerProcess(World& world, std::string its_name,
                               int32_t rank)
    : WorkerProcess(world, Role::kLearner, std::move(its_name), rank) {}

void LearnerProcess::OnStart() {
  lineage_.reset();
  ordered_.clear();
  met_.clear();
  waiting_at_.clear();
  then_ = nullptr;
  batches_since_start_ = 0;
  checkpoint_.reset();
  Connect([this] { Join(); });
}

void LearnerProcess::OnKilled() {
  WorkerProcess::OnKilled();
  lineage_.reset();
  then_ = nullptr;
  // Its peers' collective breaks at once.
  for (int32_t r = 0; r < world_.world_size; ++r) {
    LearnerProcess* peer = world_.Rank(r);
    if (peer != this && peer->alive && generation_ > 0 &&
        peer->generation_ == generation_) {
      peer->After(world_.Jitter(50 * kMs, 500 * kMs),
                  [peer] { peer->Kill("the collective broke"); });
    }
  }
}

void LearnerProcess::OnFatal(const absl::Status& status) {
  WorkerProcess::OnFatal(status);
}

void LearnerProcess::Join() {
  Call<JoinReply>(
      kPoll,
      [this](CoordinatorProcess& coordinator, const CoreCaller& caller,
             ReplyTo<JoinReply> reply) {
        coordinator.Poll<JoinReply>(
            kPoll, JoinReply(),
            [this, caller](CoordinatorCore& core)
                -> absl::StatusOr<std::optional<JoinReply>> {
              COX_ASSIGN_OR_RETURN(
                  JoinReply joined,
                  core.Join({caller, rank_, world_.world_size, "host:1"}));
              return joined.ready ? std::optional<JoinReply>(joined)
                                  : std::nullopt;
            },
            std::move(reply));
      },
      [this](const absl::StatusOr<JoinReply>& joined) {
        if (!joined.ok()) {
          return OnFatal(joined.status());
        }
        if (!joined->ready) {
          return Join();
        }
        generation_ = joined->generation.value;
        NextAssignment(0);
      });
}

void LearnerProcess::NextAssignment(int64_t serial) {
  Call<AssignmentData>(
      kPoll,
      [serial](CoordinatorProcess& coordinator, const CoreCaller& caller,
               ReplyTo<AssignmentData> reply) {
        coordinator.Poll<AssignmentData>(
            kPoll, AssignmentData(),
            [caller, serial](CoordinatorCore& core)
                -> absl::StatusOr<std::optional<AssignmentData>> {
              COX_ASSIGN_OR_RETURN(AssignmentData a,
                                   core.GetAssignment(caller));
              return a.serial != serial
                         ? std::optional<AssignmentData>(std::move(a))
                         : std::nullopt;
            },
            std::move(reply));
      },
      [this, serial](const absl::StatusOr<AssignmentData>& a) {
        if (!a.ok()) {
          return OnFatal(a.status());
        }
        if (a->serial == 0) {
          return NextAssignment(serial);
        }
        OnAssignment(*a);
      });
}

void LearnerProcess::OnAssignment(const AssignmentData& assignment) {
  assignment_ = assignment;
  const int64_t serial = assignment.serial;
  if (world_.tracing()) {
    world_.Trace(absl::StrCat(name, " g", generation_, " gets ",
                              assignment.stage_kind, " ",
                              static_cast<int>(assignment.kind)));
  }
  switch (assignment.kind) {
    case AssignmentKind::kTrain:
      return Train();
    case AssignmentKind::kServe:
      if (rank_ == 0) {
        return PublishOrders(0, [this, serial] {
          KeepOnly();
          NextAssignment(serial);
        });
      }
      return NextAssignment(serial);
    case AssignmentKind::kDone:
      return;
    default:
      return NextAssignment(serial);
  }
}

absl::StatusOr<TrainerState> LearnerProcess::LoadCheckpoint(
    const CheckpointRow& row) {
  COX_RETURN_IF_ERROR(
      VerifyCheckpoint(world_.fs, row.directory, row.manifest_sha256)
          .status());
  COX_ASSIGN_OR_RETURN(
      const std::string text,
      world_.fs.ReadAll(JoinPath(row.directory, "trainer/state.bin")));
  TrainerState state;
  if (!TrainerState::Load(text, &state)) {
    return absl::DataLossError("the state cannot be read");
  }
  return state;
}

std::optional<TrainerState> LearnerProcess::NewestFolder() {
  const std::string dir = JoinPath(
      "/run/checkpoints",
      std::string(StageKindName(world_.plan.stage(assignment_.stage).kind)));
  const absl::StatusOr<std::vector<std::string>> names = world_.fs.List(dir);
  std::optional<TrainerState> newest;
  for (const std::string& folder : names.value_or(std::vector<std::string>())) {
    if (!ParseCheckpointName(folder).has_value()) {
      continue;
    }
    CheckpointRow row;
    row.directory = JoinPath(dir, folder);
    const absl::StatusOr<TrainerState> state = LoadCheckpoint(row);
    if (state.ok()) {
      newest = *state;
    }
  }
  return newest;
}

void LearnerProcess::PublishOrders(size_t next, std::function<void()> then) {
  if (next == assignment_.publish.size()) {
    return then();
  }
  const PublishOrderData& order = assignment_.publish[next];
  const auto key = std::pair(order.model, order.version);
  const auto go_on = [this, next, then = std::move(then)] {
    PublishOrders(next + 1, then);
  };
  if (ordered_.contains(key)) {
    return go_on();
  }
  std::string hash = InitialWeights();
  if (order.checkpoint.has_value()) {
    const absl::StatusOr<TrainerState> state =
        LoadCheckpoint(*order.checkpoint);
    if (!state.ok()) {
      return OnFatal(state.status());
    }
    hash = state->weights;
  }
  ordered_[key] = hash;
  Publish(order.model, order.version, hash, go_on);
}

void LearnerProcess::Publish(const std::string& model,
                             const PolicyVersion& version,
                             const std::string& hash,
                             std::function<void()> then) {
  held_.insert(hash);
  Call<bool>(
      0,
      [this, model, version, hash](CoordinatorProcess& coordinator,
                                   const CoreCaller& caller,
                                   ReplyTo<bool> reply) {
        PublishEvent event;
        event.caller = caller;
        event.version = {model, version, hash, "manifest"};
        event.address = name;
        coordinator.Unary<bool>(
            [this, event](CoordinatorCore& core) -> absl::StatusOr<bool> {
              COX_RETURN_IF_ERROR(core.Publish(event));
              world_.checker.OnServed(event.caller.generation,
                                      core.generation().value);
              return true;
            },
            std::move(reply));
      },
      [this, then = std::move(then)](const absl::StatusOr<bool>& published) {
        if (!published.ok()) {
          return OnFatal(published.status());
        }
        then();
      });
}

bool LearnerProcess::Restore() {
  state_ = FreshState(InitialWeights());
  absl::StatusOr<TrainerState> loaded = state_;
  const bool resumes = assignment_.resume.has_value();
  if (resumes) {
    loaded = LoadCheckpoint(*assignment_.resume);
  } else if (assignment_.policy.has_value()) {
    loaded = LoadCheckpoint(*assignment_.policy);
    if (loaded.ok()) {
      loaded = FreshState(loaded->weights);
    }
  }
  if (!loaded.ok()) {
    OnFatal(loaded.status());
    return false;
  }
  state_ = *loaded;
  if (!world_.rules.load_by_row) {
    if (std::optional<TrainerState> newest = NewestFolder()) {
      state_ = *newest;
    }
  }
  world_.checker.OnLoaded(assignment_.stage, state_);
  return true;
}

void LearnerProcess::Train() {
  if (!Restore()) {
    return;
  }
  const RunPlan& plan = world_.plan;
  const bool units = plan.stage(assignment_.stage).has_units();
  LineageOptions options;
  options.total_steps = assignment_.total_steps;
  options.checkpoint_every = kCheckpointEvery;
  options.has_batches = units;
  options.speaks = rank_ == 0;
  options.lag = plan.schedule().lag;
  options.checkpoint_beside = world_.checkpoint_beside;
  options.rules = world_.rules.lineage;
  lineage_.emplace(options, state_.step);
  checkpoint_.reset();
  if (units && rank_ == 0) {
    PublishOrders(0, [this] { Continue(); });
  } else {
    Continue();
  }
}

void LearnerProcess::Done() {
  lineage_->OnDone(action_);
  Continue();
}

void LearnerProcess::Continue() {
  const LineageAction action = lineage_->Next();
  action_ = action;
  switch (action.kind) {
    case LineageAction::Kind::kPublish:
      return PublishVersion(action.step);
    case LineageAction::Kind::kTakeBatch:
      return TakeBatch(action.step);
    case LineageAction::Kind::kTrain:
      return TrainStep(action.step);
    case LineageAction::Kind::kCheckpoint:
      return BeginCheckpoint(action.step);
    case LineageAction::Kind::kCommit:
      return Commit(action);
    case LineageAction::Kind::kRetain:
      return Retain(action.step);
    case LineageAction::Kind::kAwaitCheckpoint:
      return;  // its completion calls Continue()
    case LineageAction::Kind::kDone: {
      const int64_t serial = assignment_.serial;
      lineage_.reset();
      return NextAssignment(serial);
    }
  }
}

void LearnerProcess::PublishVersion(int64_t step) {
  std::string hash = state_.weights;
  if (step != state_.step) {
    auto older = state_.older.find(step);
    if (older == state_.older.end()) {
      return Done();
    }
    hash = older->second;
  }
  Publish("policy", {assignment_.stage, step}, hash, [this] {
    KeepOnly();
    Done();
  });
}

void LearnerProcess::KeepOnly() {
  std::set<std::string> keep;
  for (const auto& [key, hash] : ordered_) {
    keep.insert(hash);
  }
  if (lineage_.has_value()) {
    keep.insert(state_.weights);
    for (const auto& [step, hash] : state_.older) {
      if (step >= state_.step - world_.plan.schedule().lag - 1) {
        keep.insert(hash);
      }
    }
  }
  std::erase_if(held_, [&](const std::string& hash) {
    return !keep.contains(hash);
  });
}

void LearnerProcess::TakeBatch(int64_t step) {
  using Batch = BatchReply;
  Call<Batch>(
      kPoll,
      [this, step](CoordinatorProcess& coordinator, const CoreCaller& caller,
                   ReplyTo<Batch> reply) {
        coordinator.Poll<Batch>(
            kPoll, Batch(),
            [this, &coordinator, caller, step,
             stage = assignment_.stage](CoordinatorCore& core)
                -> absl::StatusOr<std::optional<Batch>> {
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
  Fs& fs = world_.rules.files_before_name ? static_cast<Fs&>(world_.fs)
                                          : unsynced;
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
  checkpoint_ = CheckpointData{state.step, directory,
                               written->manifest_sha256,
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
        After(world_.Jitter(20 * kMs, 600 * kMs),
              [this, directory = *directory, state = state_] {
                if (lineage_.has_value() &&
                    WriteCheckpointFiles(directory, state) &&
                    world_.rules.lineage.row_after_write) {
                  const bool waits = action_.kind ==
                                     LineageAction::Kind::kAwaitCheckpoint;
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
            [this, now, reply = std::move(reply)](
                const absl::StatusOr<bool>& replayed) {
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
          static_cast<void>(world_.fs.RemoveAll(folder));
        }
        if (!world_.AfterDiskUse(*this)) {
          Done();
        }
      });
}

}  // namespace cox::sim
