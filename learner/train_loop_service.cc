#include "learner/train_loop_service.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/failpoint.h"
#include "lib/base/log.h"
#include "lib/engine/canary.h"
#include "lib/metrics/trace_recorder.h"
#include "lib/rpc/error_reason.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr absl::Duration kBatchPoll = absl::Seconds(10);
// Steps without any finite update after which a person has to look.
constexpr int64_t kMaxSkippedInARow = 5;

double SecondsSince(MonoTime start) {
  return absl::ToDoubleSeconds(Clock::Real().Now() - start);
}

// What a step's trace calls it.
std::string_view SpanName(LineageAction::Kind kind) {
  switch (kind) {
    case LineageAction::Kind::kPublish:
      return "publish";
    case LineageAction::Kind::kTakeBatch:
      return "take";
    case LineageAction::Kind::kTrain:
      return "train";
    case LineageAction::Kind::kCheckpoint:
      return "checkpoint";
    case LineageAction::Kind::kCommit:
      return "commit";
    case LineageAction::Kind::kRetain:
      return "commit checkpoint";
    case LineageAction::Kind::kAwaitCheckpoint:
      return "await checkpoint";
    case LineageAction::Kind::kDone:
      break;
  }
  return "done";
}

// In the trace of every unit of the batch: where its samples were learned.
void TraceUnits(const BatchInput& input, int64_t start_ns) {
  if (!TraceRecorder::Process().enabled()) return;
  const int64_t end_ns = UnixNanos();
  std::optional<UnitId> last;
  for (const Trajectory& row : input.trajectories) {
    if (last == row.id.unit) continue;
    last = row.id.unit;
    RecordSpan("learn", UnitTrace(*last), last->ToString(), start_ns, end_ns);
  }
}

}  // namespace

absl::StatusOr<int> FreePort::Reserve(const std::string& host) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rendezvous host: expected an IPv4 address, found '", host, "'"));
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
  heartbeater_->SetState(absl::StrCat("loading stage ", assignment.stage(), " ",
                                      assignment.stage_kind()));
  COX_ASSIGN_OR_RETURN(stage.run, BuildStage(context_, assignment));
  const int64_t resumed = stage.run.trainer->completed_steps();
  stage.resumed = resumed;
  COX_RETURN_IF_ERROR(CheckSameWeights(&stage));
  stage.lineage.emplace(
      LineageOptions{.total_steps = assignment.total_steps(),
                     .checkpoint_every = context_.config.checkpoint().every(),
                     .has_batches = stage.is_ppo,
                     .speaks = options_.rank == 0,
                     .lag = stage.lag,
                     .checkpoint_beside = true,
                     .rules = {}},
      resumed);
  LogInfo("stage starts", {Field("stage", assignment.stage()),
                           {"kind", assignment.stage_kind()},
                           Field("after_step", resumed),
                           Field("committed", assignment.last_committed()),
                           Field("steps", assignment.total_steps())});
  if (options_.rank == 0) {
    SweepStage(assignment.stage());
  }
  if (stage.is_ppo && options_.rank == 0) {
    COX_RETURN_IF_ERROR(PublishOrders(assignment));
  }
  while (true) {
    COX_RETURN_IF_ERROR(FollowCheckpoint(&stage, /*wait=*/false));
    const LineageAction action = stage.lineage->Next();
    if (action.kind == LineageAction::Kind::kDone) {
      return absl::OkStatus();
    }
    if (action.kind == LineageAction::Kind::kAwaitCheckpoint) {
      COX_RETURN_IF_ERROR(FollowCheckpoint(&stage, /*wait=*/true));
      continue;
    }
    const absl::Status status = Act(&stage, action);
    if (absl::IsCancelled(status) && options_.rank == 0) {
      CheckpointBeforeLeaving(&stage);
    }
    COX_RETURN_IF_ERROR(status);
    stage.lineage->OnDone(action);
  }
}

absl::Status Learner::Act(Stage* stage, const LineageAction& action) {
  using Kind = LineageAction::Kind;
  const TraceContext trace = StepTrace(stage->assignment.stage(), action.step);
  const TraceScope scope(
      SpanName(action.kind), trace,
      absl::StrCat("s", stage->assignment.stage(), ".", action.step));
  const bool border = action.kind == Kind::kTakeBatch ||
                      (action.kind == Kind::kTrain && !stage->is_ppo);
  if (border) {
    stage->step_start = Clock::Real().Now();
    stage->wait_s = 0;
    if (stop_.HasBeenNotified()) {
      return absl::CancelledError("stopped");
    }
  }
  switch (action.kind) {
    case Kind::kPublish:
      return PublishVersionOf(stage, action.step);
    case Kind::kTakeBatch: {
      COX_ASSIGN_OR_RETURN(stage->input, TakeBatch(stage, action.step));
      stage->wait_s = SecondsSince(stage->step_start);
      return absl::OkStatus();
    }
    case Kind::kTrain:
      return TrainStep(stage, action.step);
    case Kind::kCheckpoint:
      return BeginStageCheckpoint(stage, action.step);
    case Kind::kCommit:
      return CommitTrained(stage, action);
    case Kind::kRetain:
      return CommitStageCheckpoint(stage);
    case Kind::kAwaitCheckpoint:
    case Kind::kDone:
      break;
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
      const int64_t step = stage->run.trainer->completed_steps();
      const std::string text = absl::StrCat(
          "after step ", step, " of stage ", stage->assignment.stage(),
          " rank ", at / hash.size(), " has weights ",
          all.substr(at, hash.size()), ", rank ", options_.rank, " has ", hash);
      // From a checkpoint that is the checkpoint's fault. On the way it is a
      // machine's: the next group starts from a checkpoint and computes the
      // steps again.
      return step == stage->resumed ? absl::DataLossError(text)
                                    : absl::AbortedError(text);
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
    absl::StatusOr<TakenBatch> batch = client_.TakeBatch(
        stage->assignment.stage(), step, options_.rank, kBatchPoll);
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
  input.kl_coef = taken.kl_coef;
  stage->tokens = 0;
  for (const auto& [unit, payload] : taken.units) {
    absl::StatusOr<std::vector<Trajectory>> rows = ParseUnit(payload);
    if (!rows.ok()) {
      return Annotate(rows.status(), unit.ToString());
    }
    for (Trajectory& row : *rows) {
      stage->tokens +=
          static_cast<int64_t>(row.prompt_ids.size() + row.response_ids.size());
      input.trajectories.push_back(std::move(row));
    }
  }
  stage->answers = static_cast<int64_t>(input.trajectories.size());
  return input;
}

absl::Status Learner::TrainStep(Stage* stage, int64_t step) {
  heartbeater_->SetState(absl::StrCat("training step ", step));
  if (HitFailpoint("learner.memory") == FailAction::kFlip) {
    float& value = stage->run.policy->Parameters().front();
    value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) ^ 0x10000u);
  }
  const MonoTime train_start = Clock::Real().Now();
  const int64_t train_start_ns = UnixNanos();
  COX_ASSIGN_OR_RETURN(stage->result,
                       stage->run.trainer->Step(step, stage->input));
  TraceUnits(stage->input, train_start_ns);
  stage->input = BatchInput();
  stage->train_s = SecondsSince(train_start);
  HitFailpoint("learner.trained");
  const int64_t every = context_.config.audit().replicas_every();
  if (group_->world_size() > 1 && every > 0 && step % every == 0) {
    COX_RETURN_IF_ERROR(CheckSameWeights(stage));
  }
  stage->skipped_in_a_row =
      stage->result.skipped ? stage->skipped_in_a_row + 1 : 0;
  if (stage->skipped_in_a_row >= kMaxSkippedInARow) {
    return absl::DataLossError(
        absl::StrCat("training diverged: ", stage->skipped_in_a_row,
                     " steps in a row up to step ", step, " of stage ",
                     stage->assignment.stage(), " had no finite gradient"));
  }
  return absl::OkStatus();
}

absl::Status Learner::CommitTrained(Stage* stage, const LineageAction& action) {
  const int64_t step = action.step;
  absl::Status committed;
  if (options_.rank == 0) {
    heartbeater_->SetState(absl::StrCat("committing step ", step),
                           "coordinator");
    committed = CommitOnRankZero(stage, action);
  } else {
    heartbeater_->SetState(absl::StrCat("waiting for step ", step), "rank 0");
  }
  COX_RETURN_IF_ERROR(ShareVerdict(committed));
  stage->last_batch = stage->result.batch_sha256;
  LogStep(stage, step, stage->result);
  return absl::OkStatus();
}

absl::Status Learner::CommitOnRankZero(Stage* stage,
                                       const LineageAction& action) {
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> trained,
                       stage->run.trainer->Trained());
  const StepResult& result = stage->result;
  v1::CommitStepRequest request;
  request.set_stage(stage->assignment.stage());
  request.set_step(action.step);
  request.set_batch_sha256(result.batch_sha256);
  request.set_weight_hash(trained->content_hash);
  request.set_skipped(result.skipped);
  std::map<std::string, double> metrics = result.metrics;
  const double step_s = SecondsSince(stage->step_start);
  metrics["timing_s/step"] = step_s;
  metrics["timing_s/wait_batch"] = stage->wait_s;
  metrics["timing_s/train"] = stage->train_s;
  metrics["timing_s/checkpoint"] = stage->checkpoint_s;
  stage->checkpoint_s = 0;
  metrics["checkpoint/unsaved_steps"] =
      static_cast<double>(action.step - stage->lineage->checkpointed());
  metrics["checkpoint/failures"] =
      static_cast<double>(stage->checkpoint_failures);
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
  COX_RETURN_IF_ERROR(client_.CommitStep(std::move(request)).status());
  HitFailpoint("learner.committed");
  MutexLock lock(&mutex_);
  last_metrics_ = std::move(metrics);
  last_metrics_["step"] = static_cast<double>(action.step);
  return absl::OkStatus();
}

// The trained policy, or one before it from the checkpoint that was loaded.
absl::Status Learner::PublishVersionOf(Stage* stage, int64_t step) {
  if (step == stage->run.trainer->completed_steps()) {
    const MonoTime start = Clock::Real().Now();
    COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> trained,
                         stage->run.trainer->Trained());
    COX_RETURN_IF_ERROR(PublishPolicy(stage, step, trained));
    HitFailpoint("learner.published");
    stage->publish_s = SecondsSince(start);
    return absl::OkStatus();
  }
  const std::string folder = JoinPath(stage->assignment.resume().directory(),
                                      absl::StrCat("trainer/version_", step));
  if (stage->assignment.resume().directory().empty() ||
      !context_.fs->Exists(folder)) {
    return absl::OkStatus();
  }
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> snapshot,
                       LoadModel(*context_.fs, folder, "policy"));
  return PublishPolicy(stage, step, snapshot);
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
  std::vector<float> canary;  // of the trained weights; others are not loaded
  if (step == stage->run.trainer->completed_steps()) {
    // One that cannot be computed is for the trainer to notice, not for us.
    canary =
        CanaryLogprobs(stage->run.policy.get()).value_or(std::vector<float>());
  }
  COX_RETURN_IF_ERROR(
      Publish("policy", {stage->assignment.stage(), step}, snapshot, canary));
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
