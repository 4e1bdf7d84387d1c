// The learner group, committed steps, checkpoints, versions.

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "coordinator/core.h"
#include "lib/base/fs.h"
#include "lib/rpc/error_reason.h"

namespace cox {

int64_t CoordinatorCore::committed() const { return LastStep(current_); }

int64_t CoordinatorCore::LastStep(int32_t stage) const {
  const std::map<int64_t, StepRow>& steps = Steps(stage);
  return steps.empty() ? 0 : steps.rbegin()->first;
}

const std::map<int64_t, StepRow>& CoordinatorCore::Steps(int32_t stage) const {
  static const std::map<int64_t, StepRow> kNone;
  auto found = steps_.find(stage);
  return found == steps_.end() ? kNone : found->second;
}

absl::StatusOr<JoinReply> CoordinatorCore::Join(const JoinEvent& event) {
  COX_ASSIGN_OR_RETURN(Session * session, Find(event.caller, "learner"));
  if (event.world_size != options_.world_size || event.rank < 0 ||
      event.rank >= options_.world_size || event.rank != session->who.rank) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rank ", event.rank, " of ", event.world_size, ": rank ",
        session->who.rank, " of ", options_.world_size, " expected"));
  }
  JoinReply reply;
  // A member that does not know the newest generation has lost the reply.
  auto member = members_.find(event.rank);
  if (group_valid_ && member != members_.end() &&
      member->second.session == event.caller.session &&
      event.caller.generation < generation_.value) {
    reply.ready = true;
    reply.generation = generation_;
    reply.rendezvous = members_[0].rendezvous;
    return reply;
  }
  // Of two processes of one rank the one that registered last has it. Without
  // an order they would take the place from each other for ever.
  auto joiner = joiners_.find(event.rank);
  if ((joiner != joiners_.end() &&
       IsYounger(joiner->second.session, *session)) ||
      (group_valid_ && member != members_.end() &&
       IsYounger(member->second.session, *session))) {
    return reply;
  }
  // Whoever joins says that the old group is over.
  if (group_valid_ || joiners_[event.rank].session != event.caller.session) {
    group_valid_ = false;
    Changed();
  }
  joiners_[event.rank] = {event.caller.session, event.rendezvous};
  if (static_cast<int32_t>(joiners_.size()) < options_.world_size) {
    return reply;
  }
  ++generation_.value;
  if (options_.rules.generation_durable) {
    Record(GenerationRow{generation_});
  }
  members_ = std::exchange(joiners_, {});
  group_valid_ = true;
  AddEvent("group", absl::StrCat("generation ", generation_.value));
  Changed();
  reply.ready = true;
  reply.generation = generation_;
  reply.rendezvous = members_[0].rendezvous;
  return reply;
}

absl::Status CoordinatorCore::CheckBatch(const CommitStepEvent& event) {
  const StagePlan& stage = plan_.stage(event.stage);
  if (!stage.has_units()) {
    return absl::OkStatus();
  }
  const std::vector<BatchUnit> units =
      ToBatchUnits(UnitsOfStep(event.stage, event.step));
  if (static_cast<int32_t>(units.size()) != stage.units_per_step()) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", event.step, ": its batch is not complete"));
  }
  const std::string expected = BatchHash(units);
  if (event.batch_sha256 != expected) {
    return absl::DataLossError(
        absl::StrCat("stage ", event.stage, " step ", event.step, ": batch ",
                     expected, " expected, trained on ", event.batch_sha256));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> CoordinatorCore::ReplayStep(const CommitStepEvent& event) {
  const StepRow& row = Steps(event.stage).at(event.step);
  if (!options_.rules.compare_and_set) {
    return true;
  }
  if (row.batch_sha256 != event.batch_sha256 ||
      row.weight_hash != event.weight_hash || row.skipped != event.skipped) {
    return absl::DataLossError(absl::StrCat(
        "stage ", event.stage, " step ", event.step,
        " was committed with batch ", row.batch_sha256, " and weights ",
        row.weight_hash, ", recomputed with batch ", event.batch_sha256,
        " and weights ", event.weight_hash));
  }
  return true;
}

absl::StatusOr<bool> CoordinatorCore::CommitStep(const CommitStepEvent& event) {
  COX_RETURN_IF_ERROR(FindMember(event.caller).status());
  if (event.stage < 0 || event.stage >= plan_.num_stages() || event.step < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stage ", event.stage, " step ", event.step, " is not in the plan"));
  }
  const int64_t last = LastStep(event.stage);
  COX_RETURN_IF_ERROR(CheckRemembered(event.stage, event.step));
  if (event.step <= last) {
    absl::StatusOr<bool> replayed = ReplayStep(event);
    if (!replayed.ok()) {
      Fail(std::string(replayed.status().message()), 43);
      return replayed.status();
    }
    if (event.checkpoint.has_value()) {
      COX_RETURN_IF_ERROR(RecordCheckpoint(
          event.caller, event.stage, *event.checkpoint, event.weight_hash));
    }
    CheckStageComplete();
    return true;
  }
  const bool next = event.step == last + 1 || !options_.rules.compare_and_set;
  if (event.stage != current_ || !next ||
      !plan_.stage(event.stage).has_learner_steps() ||
      event.step > plan_.stage(event.stage).total_steps) {
    return absl::FailedPreconditionError(absl::StrCat(
        "step ", event.step, " of stage ", event.stage, ": stage ", current_,
        " has committed ", done() ? 0 : committed(), " steps"));
  }
  if (absl::Status batch = CheckBatch(event); !batch.ok()) {
    if (absl::IsDataLoss(batch)) {
      Fail(std::string(batch.message()), 43);
    }
    return batch;
  }
  StepRow row;
  row.stage = event.stage;
  row.step = event.step;
  row.batch_sha256 = event.batch_sha256;
  row.weight_hash = event.weight_hash;
  row.skipped = event.skipped;
  row.generation = generation_;
  row.metrics = event.metrics;
  if (plan_.stage(event.stage).has_units()) {
    const auto batch = batches_.find(event.step);
    const MetricList of_batch = BatchMetrics(
        event.step, UnitsOfStep(event.stage, event.step),
        batch == batches_.end() ? 0 : batch->second.dropped.size());
    row.metrics.insert(row.metrics.end(), of_batch.begin(), of_batch.end());
  }
  steps_[event.stage][event.step] = row;
  Record(std::move(row));
  Effect effect;
  effect.kind = Effect::Kind::kStepCommitted;
  effect.stage = event.stage;
  effect.step = event.step;
  effects_.push_back(std::move(effect));
  Changed();
  if (event.checkpoint.has_value()) {
    COX_RETURN_IF_ERROR(RecordCheckpoint(event.caller, event.stage,
                                         *event.checkpoint, event.weight_hash));
  }
  ForgetHistory();
  CheckStageComplete();
  return false;
}

absl::StatusOr<std::string> CoordinatorCore::BeginCheckpoint(
    const CoreCaller& caller, int32_t stage, int64_t step) {
  COX_RETURN_IF_ERROR(FindMember(caller).status());
  if (stage < 0 || stage >= plan_.num_stages() || step < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("stage ", stage, " step ", step, " is not in the plan"));
  }
  // Two stages of a kind get folders of their own.
  std::string folder(StageKindName(plan_.stage(stage).kind));
  if (plan_.StageBefore(stage, plan_.stage(stage).kind) >= 0) {
    absl::StrAppend(&folder, "-", stage);
  }
  return JoinPath(JoinPath(options_.checkpoint_dir, folder),
                  absl::StrFormat("step_%06d.g%d", step, generation_.value));
}

absl::Status CoordinatorCore::RecordCheckpoint(const CoreCaller& caller,
                                               int32_t stage,
                                               const CheckpointData& checkpoint,
                                               const std::string& weight_hash) {
  const bool committed =
      checkpoint.step >= 1 && checkpoint.step <= LastStep(stage);
  const bool checks = options_.rules.checkpoint_of_committed;
  if (!committed && checks) {
    return absl::FailedPreconditionError(
        absl::StrCat("checkpoint of stage ", stage, " step ", checkpoint.step,
                     ": the step is not committed"));
  }
  if (committed) {
    COX_RETURN_IF_ERROR(CheckRemembered(stage, checkpoint.step));
  }
  if (checkpoint.directory.empty() || checkpoint.manifest_sha256.empty()) {
    return absl::InvalidArgumentError(
        "checkpoint: directory or manifest_sha256 is empty");
  }
  absl::Status bad;
  if (const std::string recorded =
          committed ? Steps(stage).at(checkpoint.step).weight_hash : "";
      recorded != weight_hash && checks) {
    bad = absl::DataLossError(
        absl::StrCat("checkpoint of stage ", stage, " step ", checkpoint.step,
                     ": the step was committed with weights ", recorded,
                     ", found ", weight_hash));
  }
  auto [found, inserted] = checkpoints_.try_emplace({stage, checkpoint.step});
  if (!inserted && bad.ok() &&
      found->second.state_sha256 != checkpoint.state_sha256) {
    bad = absl::DataLossError(
        absl::StrCat("checkpoint of stage ", stage, " step ", checkpoint.step,
                     ": recorded with state ", found->second.state_sha256,
                     ", recomputed with ", checkpoint.state_sha256));
  }
  if (!bad.ok()) {
    if (inserted) {
      checkpoints_.erase(found);
    }
    Fail(std::string(bad.message()), 43);
    return bad;
  }
  if (!inserted) {
    return absl::OkStatus();  // the first one stays
  }
  CheckpointRow& row = found->second;
  row.stage = stage;
  row.step = checkpoint.step;
  row.directory = checkpoint.directory;
  row.manifest_sha256 = checkpoint.manifest_sha256;
  row.weight_hash = weight_hash;
  row.state_sha256 = checkpoint.state_sha256;
  row.generation = Generation{caller.generation};
  Record(row);
  AddEvent("checkpoint", BaseName(row.directory));
  Changed();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> CoordinatorCore::CommitCheckpoint(
    const CommitCheckpointEvent& event) {
  COX_RETURN_IF_ERROR(FindMember(event.caller).status());
  COX_RETURN_IF_ERROR(RecordCheckpoint(event.caller, event.stage,
                                       event.checkpoint, event.weight_hash));
  std::vector<std::string> removed;
  // A second copy of a step that has its row already is of no use.
  const CheckpointRow& kept =
      checkpoints_.at({event.stage, event.checkpoint.step});
  if (kept.directory != event.checkpoint.directory) {
    removed.push_back(event.checkpoint.directory);
  }
  for (std::string& directory : DropCheckpoints(event.stage)) {
    removed.push_back(std::move(directory));
  }
  DropSegments();
  CheckStageComplete();
  return removed;
}

std::vector<CheckpointRow> CoordinatorCore::LatestCheckpoints(
    int32_t stage) const {
  std::vector<CheckpointRow> rows;
  for (auto it = checkpoints_.rbegin(); it != checkpoints_.rend(); ++it) {
    if (stage < 0 || it->second.stage == stage) {
      rows.push_back(it->second);
    }
  }
  return rows;
}

std::optional<CheckpointRow> CoordinatorCore::NewestCheckpoint(
    int32_t stage) const {
  if (stage < 0) {
    return std::nullopt;
  }
  std::vector<CheckpointRow> rows = LatestCheckpoints(stage);
  if (rows.empty()) {
    return std::nullopt;
  }
  return rows.front();
}

absl::Status CoordinatorCore::CheckPublishable(
    const VersionRow& version) const {
  const PolicyVersion& id = version.version;
  const std::string what = absl::StrCat(version.model, " ", id.ToString());
  if (done() || id.stage != current_) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": stage ", current_, " is running"));
  }
  const StagePlan& stage = plan_.stage(current_);
  if (!stage.has_units()) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": this stage has no versions"));
  }
  if (version.model == "reward" || version.model == "reference") {
    return id.step == 0 ? absl::OkStatus()
                        : absl::InvalidArgumentError(
                              absl::StrCat(what, ": step 0 expected"));
  }
  if (version.model != "policy") {
    return absl::InvalidArgumentError(absl::StrCat(what, ": unknown model"));
  }
  const int64_t last =
      stage.kind == StageKind::kPpo
          ? committed() + (options_.rules.publish_committed_only ? 0 : 1)
          : stage.total_steps - 1;
  if (id.step < 0 || id.step > last) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": the last version that may exist is ", last));
  }
  if (stage.kind == StageKind::kPpo && id.step > 0 && id.step <= committed()) {
    COX_RETURN_IF_ERROR(CheckRemembered(current_, id.step));
    const StepRow& step = Steps(current_).at(id.step);
    if (step.weight_hash != version.content_hash) {
      return absl::DataLossError(
          absl::StrCat(what, ": the step was committed with weights ",
                       step.weight_hash, ", published ", version.content_hash));
    }
  }
  return absl::OkStatus();
}

absl::Status CoordinatorCore::Publish(const PublishEvent& event) {
  COX_ASSIGN_OR_RETURN(Session * session, FindMember(event.caller));
  absl::Status status = CheckPublishable(event.version);
  const VersionRow* known =
      FindVersion(event.version.model, event.version.version);
  if (status.ok() && known != nullptr &&
      known->content_hash != event.version.content_hash) {
    status = absl::DataLossError(
        absl::StrCat(event.version.model, " ", event.version.version.ToString(),
                     " was published with hash ", known->content_hash, ", now ",
                     event.version.content_hash));
  }
  if (!status.ok()) {
    if (absl::IsDataLoss(status)) {
      Fail(std::string(status.message()), 43);
    }
    return status;
  }
  if (!event.address.empty()) {
    session->who.address = event.address;
  }
  constexpr size_t kMaxPublications = 256;
  if (publications_.size() >= kMaxPublications) {
    publications_.clear();
  }
  PublicationData& said = publications_[event.version.content_hash];
  if (!event.canary.empty()) {
    said.canary = event.canary;
  }
  said.session = event.caller.session;
  said.group_address = event.group_address;
  said.generation = event.caller.generation;
  std::set<std::string> held = session->held;
  held.insert(event.version.content_hash);
  SetHeld(event.caller.session, *session, std::move(held));
  if (known == nullptr) {
    versions_[{event.version.model, event.version.version}] = event.version;
    Record(event.version);
    OpenUnits();
  }
  Changed();
  return absl::OkStatus();
}

}  // namespace cox
