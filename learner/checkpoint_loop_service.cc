// The part of the training loop (train_loop_service.cc) that makes checkpoints.

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/train_loop_service.h"
#include "lib/base/log.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

// A checkpoint on the way out is written only when it fits a grace period.
constexpr uint64_t kCheapCheckpointBytes = uint64_t{256} << 20;

}  // namespace

// Everything that the checkpoint of `step`, the last committed one, needs.
absl::StatusOr<CheckpointJob> Learner::CopyForCheckpoint(Stage* stage,
                                                         int64_t step) {
  CheckpointJob job;
  COX_ASSIGN_OR_RETURN(
      job.directory, client_.BeginCheckpoint(stage->assignment.stage(), step));
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> trained,
                       stage->run.trainer->Trained());
  job.identity = {.run_id = client_.caller().run_id,
                  .config_hash = config_hash_,
                  .stage = stage->assignment.stage(),
                  .step = step,
                  .generation = generation_,
                  .batch_sha256 = stage->last_batch,
                  .weight_hash = trained->content_hash};
  CheckpointContents& contents = job.contents;
  COX_ASSIGN_OR_RETURN(contents.models, stage->run.trainer->Models());
  for (const auto& [version, snapshot] : stage->versions) {
    if (stage->lineage->NeedsVersion(version, step)) {
      contents.models.push_back(
          {absl::StrCat("trainer/version_", version), snapshot});
    }
  }
  contents.state = stage->run.trainer->SaveState();
  if (context_.tokenizer != nullptr) {
    contents.save.tokenizer_json = context_.tokenizer->ToJson();
    if (!context_.tokenizer_config.empty()) {
      contents.save.tokenizer_config_json = context_.tokenizer_config;
    }
  }
  contents.save.eos_ids = context_.eos_ids;
  contents.save.pad_id = context_.pad_id;
  return job;
}

absl::Status Learner::BeginStageCheckpoint(Stage* stage, int64_t step) {
  heartbeater_->SetState(absl::StrCat("copying the state of step ", step));
  const MonoTime start = Clock::Real().Now();
  COX_ASSIGN_OR_RETURN(CheckpointJob job, CopyForCheckpoint(stage, step));
  if (stage->writer == nullptr) {
    stage->writer = std::make_unique<CheckpointWriter>(*context_.fs);
  }
  stage->writer->Start(std::move(job));
  stage->checkpoint_s += absl::ToDoubleSeconds(Clock::Real().Now() - start);
  return absl::OkStatus();
}

// Tells the lineage how the write in progress ended, if it did; with `wait`,
// when it did. RESOURCE_EXHAUSTED when training must not go on without a
// checkpoint; the process leaves resumable (exit 42).
absl::Status Learner::FollowCheckpoint(Stage* stage, bool wait) {
  if (stage->writer == nullptr) {
    return absl::OkStatus();
  }
  LineageCore& lineage = *stage->lineage;
  if (stage->writer->busy()) {
    const MonoTime start = Clock::Real().Now();
    if (wait) {
      heartbeater_->SetState("waiting for a checkpoint", "disk");
    }
    std::optional<CheckpointOutcome> outcome =
        wait ? stage->writer->Wait() : stage->writer->Poll();
    stage->checkpoint_s += absl::ToDoubleSeconds(Clock::Real().Now() - start);
    if (!outcome.has_value()) {
      return absl::OkStatus();
    }
    stage->checkpoint_failed = !outcome->written.ok();
    if (outcome->written.ok()) {
      stage->written = std::move(outcome);
      lineage.OnCheckpointWritten();
      return absl::OkStatus();
    }
    ++stage->checkpoint_failures;
    LogError("checkpoint not written; training goes on without it",
             {Field("step", outcome->identity.step),
              {"error", outcome->written.status().ToString()},
              Field("newest", lineage.checkpointed())});
    lineage.OnCheckpointFailed();
  }
  const int64_t unsaved = lineage.completed() - lineage.checkpointed();
  const bool last = lineage.completed() == stage->assignment.total_steps();
  if (stage->checkpoint_failed &&
      (last || unsaved > context_.config.checkpoint().max_unsaved_steps())) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "stage ", stage->assignment.stage(), ": ", unsaved,
        " steps since the newest checkpoint, and the last one could not be "
        "written (checkpoint.max_unsaved_steps: ",
        context_.config.checkpoint().max_unsaved_steps(), ")"));
  }
  return absl::OkStatus();
}

absl::Status Learner::CommitStageCheckpoint(Stage* stage) {
  const CheckpointOutcome written = *std::move(stage->written);
  stage->written.reset();
  return CommitWritten(written);
}

// The row, from which on it counts. The coordinator says which folders have
// none any more; here they are only deleted, and only if they look like ours.
absl::Status Learner::CommitWritten(const CheckpointOutcome& written) {
  v1::CheckpointRef ref;
  ref.set_stage(written.identity.stage);
  ref.set_step(written.identity.step);
  ref.set_directory(written.directory);
  ref.set_manifest_sha256(written.written->manifest_sha256);
  ref.set_generation(written.identity.generation);
  COX_ASSIGN_OR_RETURN(
      const std::vector<std::string> surplus,
      client_.CommitCheckpoint(ref, written.identity.weight_hash,
                               written.written->state_sha256));
  const std::string root = DirName(DirName(written.directory));
  for (const std::string& directory : surplus) {
    if (DirName(DirName(directory)) != root ||
        !ParseCheckpointName(BaseName(directory)).has_value()) {
      LogWarning("not deleted: not a checkpoint of this run",
                 {{"directory", directory}});
      continue;
    }
    const absl::Status removed = RemoveCheckpoint(*context_.fs, directory);
    if (!removed.ok()) {
      LogWarning("checkpoint not deleted", {{"error", removed.ToString()}});
    }
  }
  return absl::OkStatus();
}

// What processes that died left in the stage's folder. Costs space only, so an
// error is no reason to stop.
void Learner::SweepStage(int32_t stage) {
  const auto sweep = [&]() -> absl::Status {
    COX_ASSIGN_OR_RETURN(const std::string next,
                         client_.BeginCheckpoint(stage, 0));
    COX_ASSIGN_OR_RETURN(const std::vector<v1::CheckpointRef> rows,
                         client_.LatestCheckpoint(stage));
    std::set<std::string> kept;
    for (const v1::CheckpointRef& row : rows) {
      kept.insert(BaseName(row.directory()));
    }
    COX_ASSIGN_OR_RETURN(
        const std::vector<std::string> swept,
        SweepCheckpoints(*context_.fs, DirName(next), client_.caller().run_id,
                         generation_, kept,
                         context_.config.checkpoint().dir().empty()));
    for (const std::string& name : swept) {
      LogInfo("deleted a checkpoint without a row", {{"folder", name}});
    }
    return absl::OkStatus();
  };
  if (const absl::Status swept = sweep(); !swept.ok()) {
    LogWarning("leftovers of checkpoints not deleted",
               {{"error", swept.ToString()}});
  }
}

// On the way out, so that less has to be computed again. The step is committed
// already; without this checkpoint it would be replayed.
void Learner::CheckpointBeforeLeaving(Stage* stage) {
  int64_t newest = stage->lineage->checkpointed();
  const auto commit = [&](const CheckpointOutcome& outcome) {
    absl::Status status = outcome.written.status();
    if (status.ok()) {
      status = CommitWritten(outcome);
    }
    if (status.ok()) {
      newest = outcome.identity.step;
    } else {
      LogWarning("no checkpoint before leaving",
                 {{"error", status.ToString()}});
    }
  };
  if (stage->writer != nullptr && stage->writer->busy()) {
    commit(stage->writer->Wait());
  }
  const int64_t step = stage->lineage->completed();
  const uint64_t bytes = stage->run.policy->Parameters().size_bytes() +
                         (stage->run.critic != nullptr
                              ? stage->run.critic->Parameters().size_bytes()
                              : 0);
  if (step <= newest || step != stage->run.trainer->completed_steps() ||
      stage->last_batch.empty() || bytes > kCheapCheckpointBytes) {
    return;
  }
  absl::StatusOr<CheckpointJob> job = CopyForCheckpoint(stage, step);
  if (!job.ok()) {
    LogWarning("no checkpoint before leaving",
               {{"error", job.status().ToString()}});
    return;
  }
  CheckpointWriter writer(*context_.fs);
  writer.Start(*std::move(job));
  commit(writer.Wait());
}

}  // namespace cox
