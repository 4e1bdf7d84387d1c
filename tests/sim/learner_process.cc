#include "tests/sim/learner_process.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/checkpoint.h"
#include "lib/base/hash.h"

namespace cox::sim {
namespace {

constexpr Ns kPoll = 4 * kSecond;
constexpr int64_t kCheckpointEvery = 2;

}  // namespace

LearnerProcess::LearnerProcess(World& world, std::string its_name, int32_t rank)
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
  AwaitAssignment(kPoll, serial,
                  [this](const AssignmentData& a) { OnAssignment(a); });
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
      VerifyCheckpoint(world_.fs, row.directory, row.manifest_sha256).status());
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
  std::erase_if(held_,
                [&](const std::string& hash) { return !keep.contains(hash); });
}

}  // namespace cox::sim
