#include "learner/train_loop_service.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/log.h"
#include "lib/rpc/error_reason.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr absl::Duration kBatchPoll = absl::Seconds(10);
// Steps without any finite update after which a person has to look.
constexpr int64_t kMaxSkippedInARow = 5;
// A checkpoint on the way out is written only when it fits a grace period.
constexpr uint64_t kCheapCheckpointBytes = uint64_t{256} << 20;

double SecondsSince(MonoTime start) {
  return absl::ToDoubleSeconds(Clock::Real().Now() - start);
}

}  // namespace

absl::StatusOr<int> FreePort::Reserve(const std::string& host) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("rendezvous host: expected an IPv4 address, found '",
                     host, "'"));
  }
  Release();
  socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (socket_ < 0 ||
      setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(socket_, generic, size) != 0 ||
      getsockname(socket_, generic, &size) != 0) {
    return absl::UnavailableError(
        absl::StrCat("no free port on ", host, " for the rendezvous"));
  }
  return int{ntohs(address.sin_port)};
}

void FreePort::Release() {
  if (socket_ >= 0) {
    close(socket_);
    socket_ = -1;
  }
}

bool ParsePortNumber(const std::string& text, int* port) {
  return absl::SimpleAtoi(text, port) && *port > 0 && *port <= 65535;
}

absl::Status Learner::Train(const v1::Assignment& assignment) {
  Stage stage;
  stage.assignment = assignment;
  stage.is_ppo = assignment.stage_kind() == "ppo";
  const v1::ScheduleSettings& schedule = context_.config.schedule();
  stage.lag = schedule.mode() == "fixed_lag" ? schedule.lag() : 0;
  heartbeater_->SetState(absl::StrCat("loading stage ", assignment.stage(),
                                      " ", assignment.stage_kind()));
  COX_ASSIGN_OR_RETURN(stage.run, BuildStage(context_, assignment));
  COX_RETURN_IF_ERROR(CheckSameWeights(&stage));
  const int64_t resumed = stage.run.trainer->completed_steps();
  stage.checkpointed = resumed;
  LogInfo("stage starts", {Field("stage", assignment.stage()),
                           {"kind", assignment.stage_kind()},
                           Field("after_step", resumed),
                           Field("committed", assignment.last_committed()),
                           Field("steps", assignment.total_steps())});
  if (stage.is_ppo && options_.rank == 0) {
    COX_RETURN_IF_ERROR(PublishOrders(assignment));
    COX_RETURN_IF_ERROR(LoadOlderVersions(&stage));
    COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> current,
                         stage.run.trainer->Trained());
    COX_RETURN_IF_ERROR(PublishPolicy(&stage, resumed, current));
  }
  for (int64_t step = resumed + 1; step <= assignment.total_steps(); ++step) {
    const absl::Status status = stop_.HasBeenNotified()
                                    ? absl::CancelledError("stopped")
                                    : TrainStep(&stage, step);
    if (absl::IsCancelled(status) && options_.rank == 0) {
      CheckpointBeforeLeaving(&stage);
    }
    COX_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

// Ranks that start from different bits would drift apart silently.
absl::Status Learner::CheckSameWeights(Stage* stage) {
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> own,
                       stage->run.trainer->Trained());
  const std::string& hash = own->content_hash;
  std::string all(hash.size() * static_cast<size_t>(group_->world_size()),
                  '\0');
  COX_RETURN_IF_ERROR(group_->AllGather(
      AsBytes(hash), std::as_writable_bytes(std::span<char>(all))));
  for (size_t at = 0; at < all.size(); at += hash.size()) {
    if (all.compare(at, hash.size(), hash) != 0) {
      return absl::DataLossError(absl::StrCat(
          "rank ", at / hash.size(), " starts stage ",
          stage->assignment.stage(), " from weights ",
          all.substr(at, hash.size()), ", rank ", options_.rank, " from ",
          hash));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<BatchInput> Learner::TakeBatch(Stage* stage, int64_t step) {
  BatchInput input;
  if (!stage->is_ppo) {
    return input;
  }
  heartbeater_->SetState(absl::StrCat("waiting for the batch of step ", step),
                         "actors");
  TakenBatch taken;
  while (true) {
    absl::StatusOr<TakenBatch> batch =
        client_.TakeBatch(stage->assignment.stage(), step, options_.rank,
                          kBatchPoll);
    if (batch.ok()) {
      taken = *std::move(batch);
      break;
    }
    if (ReasonOf(batch.status()) != ErrorReason::kNotReady) {
      return batch.status();
    }
    if (stop_.HasBeenNotified()) {
      return absl::CancelledError("stopped while waiting for a batch");
    }
  }
  input.batch_sha256 = taken.batch_sha256;
  stage->tokens = 0;
  for (const auto& [unit, payload] : taken.units) {
    absl::StatusOr<std::vector<Trajectory>> rows = ParseUnit(payload);
    if (!rows.ok()) {
      return Annotate(rows.status(), unit.ToString());
    }
    for (Trajectory& row : *rows) {
      stage->tokens +=
          static_cast<int64_t>(row.prompt_ids.size() +
                               row.response_ids.size());
      input.trajectories.push_back(std::move(row));
    }
  }
  stage->answers = static_cast<int64_t>(input.trajectories.size());
  return input;
}

absl::Status Learner::TrainStep(Stage* stage, int64_t step) {
  stage->step_start = Clock::Real().Now();
  COX_ASSIGN_OR_RETURN(const BatchInput input, TakeBatch(stage, step));
  stage->wait_s = SecondsSince(stage->step_start);
  heartbeater_->SetState(absl::StrCat("training step ", step));
  const MonoTime train_start = Clock::Real().Now();
  COX_ASSIGN_OR_RETURN(const StepResult result,
                       stage->run.trainer->Step(step, input));
  stage->train_s = SecondsSince(train_start);
  stage->skipped_in_a_row = result.skipped ? stage->skipped_in_a_row + 1 : 0;
  if (stage->skipped_in_a_row >= kMaxSkippedInARow) {
    return absl::DataLossError(absl::StrCat(
        "training diverged: ", stage->skipped_in_a_row,
        " steps in a row up to step ", step, " of stage ",
        stage->assignment.stage(), " had no finite gradient"));
  }
  absl::Status committed;
  if (options_.rank == 0) {
    heartbeater_->SetState(absl::StrCat("committing step ", step),
                           "coordinator");
    committed = CommitOnRankZero(stage, step, result);
  } else {
    heartbeater_->SetState(absl::StrCat("waiting for step ", step), "rank 0");
  }
  COX_RETURN_IF_ERROR(ShareVerdict(committed));
  stage->last_batch = result.batch_sha256;
  LogStep(stage, step, result);
  // No unit is generated from the last version, and the stage may be over.
  const bool last = step == stage->assignment.total_steps();
  if (stage->is_ppo && options_.rank == 0 && !last) {
    const MonoTime publish_start = Clock::Real().Now();
    COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> snapshot,
                         stage->run.trainer->Trained());
    COX_RETURN_IF_ERROR(PublishPolicy(stage, step, snapshot));
    stage->publish_s = SecondsSince(publish_start);
  }
  return absl::OkStatus();
}

absl::Status Learner::CommitOnRankZero(Stage* stage, int64_t step,
                                       const StepResult& result) {
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> trained,
                       stage->run.trainer->Trained());
  v1::CommitStepRequest request;
  request.set_stage(stage->assignment.stage());
  request.set_step(step);
  request.set_batch_sha256(result.batch_sha256);
  request.set_weight_hash(trained->content_hash);
  request.set_skipped(result.skipped);
  const bool last = step == stage->assignment.total_steps();
  stage->checkpoint_s = 0;
  if (last || step % context_.config.checkpoint().every() == 0) {
    const MonoTime start = Clock::Real().Now();
    std::string state_sha256;
    COX_RETURN_IF_ERROR(WriteStageCheckpoint(stage, step, result.batch_sha256,
                                             request.mutable_checkpoint(),
                                             &state_sha256));
    request.set_state_sha256(state_sha256);
    stage->checkpoint_s = SecondsSince(start);
  }
  std::map<std::string, double> metrics = result.metrics;
  const double step_s = SecondsSince(stage->step_start);
  metrics["timing_s/step"] = step_s;
  metrics["timing_s/wait_batch"] = stage->wait_s;
  metrics["timing_s/train"] = stage->train_s;
  metrics["timing_s/checkpoint"] = stage->checkpoint_s;
  metrics["perf/wait_frac"] = step_s > 0 ? stage->wait_s / step_s : 0;
  metrics["perf/rss_bytes"] = static_cast<double>(ResidentBytes());
  if (stage->is_ppo && step_s > 0) {
    metrics["timing_s/publish"] = stage->publish_s;
    metrics["eps"] = static_cast<double>(stage->answers) / step_s;
    metrics["tokens_s"] = static_cast<double>(stage->tokens) / step_s;
  } else if (step_s > 0 && metrics.contains("text/tokens")) {
    metrics["tokens_s"] = metrics["text/tokens"] / step_s;
  }
  // The coordinator adds these from its own books.
  metrics.erase("async/staleness_max");
  for (const auto& [name, value] : metrics) {
    if (std::isfinite(value)) {
      v1::Metric* metric = request.add_metrics();
      metric->set_name(name);
      metric->set_value(value);
    }
  }
  const v1::CheckpointRef checkpoint = request.checkpoint();
  const std::string state_sha256 = request.state_sha256();
  COX_RETURN_IF_ERROR(client_.CommitStep(std::move(request)).status());
  if (!checkpoint.directory().empty()) {
    stage->checkpointed = step;
    Retain(checkpoint, trained->content_hash, state_sha256);
  }
  MutexLock lock(&mutex_);
  last_metrics_ = std::move(metrics);
  last_metrics_["step"] = static_cast<double>(step);
  return absl::OkStatus();
}

absl::Status Learner::WriteStageCheckpoint(Stage* stage, int64_t step,
                                           const std::string& batch_sha256,
                                           v1::CheckpointRef* ref,
                                           std::string* state_sha256) {
  heartbeater_->SetState(absl::StrCat("writing the checkpoint of step ", step));
  COX_ASSIGN_OR_RETURN(const std::string directory,
                       client_.BeginCheckpoint(stage->assignment.stage(),
                                               step));
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> trained,
                       stage->run.trainer->Trained());
  CheckpointContents contents;
  COX_ASSIGN_OR_RETURN(contents.models, stage->run.trainer->Models());
  for (const auto& [version, snapshot] : stage->versions) {
    if (version >= step - stage->lag && version < step) {
      contents.models.push_back(
          {absl::StrCat("trainer/version_", version), snapshot});
    }
  }
  contents.state = stage->run.trainer->SaveState();
  if (context_.tokenizer != nullptr) {
    contents.save.tokenizer_json = context_.tokenizer->ToJson();
  }
  contents.save.eos_ids = context_.eos_ids;
  contents.save.pad_id = context_.pad_id;
  COX_ASSIGN_OR_RETURN(
      const WrittenCheckpoint written,
      WriteCheckpoint(*context_.fs, directory,
                      {.run_id = client_.caller().run_id,
                       .config_hash = config_hash_,
                       .stage = stage->assignment.stage(),
                       .step = step,
                       .generation = generation_,
                       .batch_sha256 = batch_sha256,
                       .weight_hash = trained->content_hash},
                      contents));
  // A checkpoint counts only once it was read back.
  COX_RETURN_IF_ERROR(VerifyCheckpoint(*context_.fs, directory,
                                       written.manifest_sha256)
                          .status());
  ref->set_stage(stage->assignment.stage());
  ref->set_step(step);
  ref->set_directory(directory);
  ref->set_manifest_sha256(written.manifest_sha256);
  ref->set_generation(generation_);
  *state_sha256 = written.state_sha256;
  return absl::OkStatus();
}

// The coordinator keeps the rows and therefore says which folders have none
// any more; here they are only deleted, and only if they look like ours.
void Learner::Retain(const v1::CheckpointRef& ref,
                     const std::string& weight_hash,
                     const std::string& state_sha256) {
  const absl::StatusOr<std::vector<std::string>> surplus =
      client_.CommitCheckpoint(ref, weight_hash, state_sha256);
  if (!surplus.ok()) {
    LogWarning("no retention", {{"error", surplus.status().ToString()}});
    return;
  }
  const std::string root = DirName(DirName(ref.directory()));
  for (const std::string& directory : *surplus) {
    if (DirName(DirName(directory)) != root ||
        !ParseCheckpointName(BaseName(directory)).has_value()) {
      LogWarning("not deleted: not a checkpoint of this run",
                 {{"directory", directory}});
      continue;
    }
    const absl::Status removed = context_.fs->RemoveAll(directory);
    if (!removed.ok()) {
      LogWarning("checkpoint not deleted", {{"error", removed.ToString()}});
    }
  }
}

// On the way out, so that less has to be computed again. The step is committed
// already; without this checkpoint it would be replayed.
void Learner::CheckpointBeforeLeaving(Stage* stage) {
  const int64_t step = stage->run.trainer->completed_steps();
  const uint64_t bytes = stage->run.policy->Parameters().size_bytes() +
                         (stage->run.critic != nullptr
                              ? stage->run.critic->Parameters().size_bytes()
                              : 0);
  if (step <= stage->checkpointed || stage->last_batch.empty() ||
      bytes > kCheapCheckpointBytes) {
    return;
  }
  v1::CheckpointRef ref;
  std::string state_sha256;
  absl::Status status = WriteStageCheckpoint(stage, step, stage->last_batch,
                                             &ref, &state_sha256);
  if (status.ok()) {
    const auto trained = stage->run.trainer->Trained();
    status = trained.ok() ? client_
                                .CommitCheckpoint(ref,
                                                  (*trained)->content_hash,
                                                  state_sha256)
                                .status()
                          : trained.status();
  }
  if (!status.ok()) {
    LogWarning("no checkpoint before leaving", {{"error", status.ToString()}});
  }
}

absl::Status Learner::LoadOlderVersions(Stage* stage) {
  const v1::CheckpointRef& resume = stage->assignment.resume();
  if (resume.directory().empty()) {
    return absl::OkStatus();
  }
  for (int64_t version = std::max<int64_t>(0, resume.step() - stage->lag);
       version < resume.step(); ++version) {
    const std::string folder = JoinPath(
        resume.directory(), absl::StrCat("trainer/version_", version));
    if (!context_.fs->Exists(folder)) {
      continue;
    }
    COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> snapshot,
                         LoadModel(*context_.fs, folder, "policy"));
    COX_RETURN_IF_ERROR(PublishPolicy(stage, version, snapshot));
  }
  return absl::OkStatus();
}

absl::Status Learner::PublishPolicy(
    Stage* stage, int64_t step,
    const std::shared_ptr<const Snapshot>& snapshot) {
  heartbeater_->SetState(absl::StrCat("publishing policy of step ", step),
                         "coordinator");
  stage->versions[step] = snapshot;
  std::erase_if(stage->versions, [&](const auto& entry) {
    return entry.first < step - stage->lag - 1;
  });
  COX_RETURN_IF_ERROR(
      Publish("policy", {stage->assignment.stage(), step}, snapshot));
  KeepOnly(stage);
  return absl::OkStatus();
}

void Learner::KeepOnly(const Stage* stage) {
  std::vector<std::string> keep;
  for (const auto& [version, hash] : ordered_) {
    keep.push_back(hash);
  }
  if (stage != nullptr) {
    for (const auto& [step, snapshot] : stage->versions) {
      keep.push_back(snapshot->content_hash);
    }
  }
  store_.Keep(keep);
  heartbeater_->SetHeld(store_.Held());
}

void Learner::LogStep(Stage* stage, int64_t step, const StepResult& result) {
  const MonoTime now = Clock::Real().Now();
  const absl::Duration every =
      absl::Seconds(context_.config.log().metrics_every_s());
  const bool last = step == stage->assignment.total_steps();
  if (options_.rank != 0 ||
      (!last && stage->last_log.ns != 0 && now - stage->last_log < every)) {
    return;
  }
  stage->last_log = now;
  std::string values;
  for (const char* name :
       {"loss/lm", "loss/rm", "loss/policy", "loss/value", "objective/scores",
        "objective/kl", "text/heldout_ppl", "rm/heldout_accuracy"}) {
    const auto it = result.metrics.find(name);
    if (it != result.metrics.end()) {
      absl::StrAppend(&values, values.empty() ? "" : " ", name, "=",
                      it->second);
    }
  }
  LogInfo("step", {Field("stage", stage->assignment.stage()),
                   Field("step", step),
                   Field("of", stage->assignment.total_steps()),
                   Field("step_s", SecondsSince(stage->step_start)),
                   {"metrics", values}});
}

}  // namespace cox
