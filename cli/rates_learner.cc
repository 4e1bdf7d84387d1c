// What a learner does in each stage, without a coordinator.

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/rates_roles.h"
#include "learner/checkpoint_writer.h"
#include "learner/stage_service.h"
#include "lib/base/clock.h"
#include "lib/comm/collective.h"
#include "lib/data/chat_template.h"
#include "lib/engine/canary.h"
#include "lib/model/api.h"
#include "lib/rpc/engine_settings.h"

namespace cox {
namespace {

namespace v1 = cox::v1;
using Json = nlohmann::json;

const std::string& NoHash() {
  static const auto* hash = new std::string(64, '0');
  return *hash;
}

// The batch of a step of ppo: the units' answers, as if they had come from
// the version that the schedule asks for.
BatchInput RolloutOf(const RatesJob& job, int64_t step) {
  const v1::ScheduleSettings& schedule = job.config.schedule();
  const int64_t lag = schedule.mode() == "fixed_lag" ? schedule.lag() : 0;
  BatchInput input;
  input.batch_sha256 = NoHash();
  int32_t index = 0;
  for (const RatesUnit& unit : job.units) {
    if (unit.kind != "ppo") continue;
    const size_t samples = static_cast<size_t>(unit.work.samples_per_prompt);
    for (size_t row = 0; row < unit.lengths.size(); ++row) {
      const PromptInput& prompt = unit.work.prompts[row / samples];
      Trajectory& t = input.trajectories.emplace_back();
      t.id = {{unit.work.unit.stage, step, index},
              static_cast<int32_t>(row / samples),
              static_cast<int32_t>(row % samples)};
      t.prompt_id = prompt.prompt_id;
      t.prompt_ids = prompt.ids;
      t.instruction_ids = prompt.instruction_ids;
      t.response_ids = RatesAnswer(job, unit.lengths[row], row);
      t.behaviour_logprobs.assign(t.response_ids.size(), -2.0f);
      t.reference_logprobs.assign(t.response_ids.size(), -2.1f);
      t.reward_total = 0.1 * static_cast<double>(row % 7);
      t.policy_hash = NoHash();
      t.version = {unit.work.unit.stage, std::max<int64_t>(0, step - 1 - lag)};
    }
    ++index;
  }
  return input;
}

class LearnerRehearsal {
 public:
  LearnerRehearsal(const RatesJob& job, int rank, Collective* group)
      : job_(job), rank_(rank) {
    const EngineOptions options = EngineOptionsOf(job.config);
    context_.config = job.config;
    context_.tokenizer = job.tokenizer;
    context_.chat = job.chat;
    context_.eos_ids = job.eos_ids;
    context_.pad_id = job.pad_id;
    context_.vocab_size = job.vocab_size;
    context_.fs = &Fs::Real();
    context_.group = group;
    context_.make_engine = [options] { return MakeTrainEngine(options); };
    context_.fetch_file = [this](const std::string& name) {
      return Fs::Real().ReadAll(JoinPath(job_.dir, name));
    };
  }

  absl::StatusOr<Json> Run() {
    Json stages = Json::array();
    for (const RatesStage& stage : job_.stages) {
      COX_ASSIGN_OR_RETURN(Json out, Stage(stage));
      stages.push_back(std::move(out));
    }
    return stages;
  }

 private:
  // Steps 2 to n - 1 are timed: the first and the last measure held-out data.
  absl::StatusOr<Json> Stage(const RatesStage& stage) {
    v1::Assignment assignment;
    assignment.set_stage(stage.stage);
    assignment.set_stage_kind(stage.kind);
    assignment.set_total_steps(stage.steps + 2);
    assignment.mutable_policy()->set_directory(policy_);
    assignment.mutable_reward()->set_directory(reward_);
    COX_RETURN_IF_ERROR(LoadServed(stage));
    COX_ASSIGN_OR_RETURN(StageRun run, BuildStage(context_, assignment));
    std::map<int64_t, std::shared_ptr<const Snapshot>> versions;
    std::vector<double> times;
    CheckpointWriter writer(Fs::Real());
    for (int64_t step = 1; step <= stage.steps + 2; ++step) {
      BatchInput input;
      if (stage.kind == "ppo") input = RolloutOf(job_, step);
      COX_RETURN_IF_ERROR(context_.group->Barrier());
      const MonoTime start = Clock::Real().Now();
      COX_RETURN_IF_ERROR(run.trainer->Step(step, input).status());
      if (rank_ == 0) {
        COX_ASSIGN_OR_RETURN(const auto trained, run.trainer->Trained());
        if (stage.kind == "ppo") {
          versions[step] = trained;
          std::erase_if(versions, [step](const auto& entry) {
            return entry.first < step - 1;
          });
          static_cast<void>(CanaryLogprobs(run.policy.get()));
        }
      }
      COX_RETURN_IF_ERROR(context_.group->Barrier());
      if (step > 1 && step <= stage.steps + 1) {
        times.push_back(absl::ToDoubleSeconds(Clock::Real().Now() - start));
      }
      if (step == stage.steps + 1) {
        COX_RETURN_IF_ERROR(
            BeginCheckpoint(stage, step, *run.trainer, &writer));
      }
    }
    if (writer.busy()) COX_RETURN_IF_ERROR(writer.Wait().written.status());
    const int64_t last = stage.steps + 2;
    COX_RETURN_IF_ERROR(BeginCheckpoint(stage, last, *run.trainer, &writer));
    if (writer.busy()) COX_RETURN_IF_ERROR(writer.Wait().written.status());
    // The stages after this one start from it.
    COX_RETURN_IF_ERROR(context_.group->Barrier());
    (stage.kind == "rm" ? reward_ : policy_) = Folder(stage, last);
    // The first ones still take new memory.
    times.erase(times.begin(),
                times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
    std::sort(times.begin(), times.end());
    return Json{{"kind", stage.kind}, {"step_s", times[times.size() / 2]}};
  }

  // What rank 0 serves while others sample: the policy that a stage of units
  // before this one asked for; with ppo the reference and the reward model.
  absl::Status LoadServed(const RatesStage& stage) {
    const bool ppo = stage.kind == "ppo";
    if (rank_ != 0 || policy_.empty() || (!ppo && stage.kind != "rm")) {
      return absl::OkStatus();
    }
    served_.clear();
    v1::PublishOrder order;
    order.mutable_ref()->set_model(ppo ? "reference" : "policy");
    order.mutable_checkpoint()->set_directory(policy_);
    COX_ASSIGN_OR_RETURN(served_.emplace_back(), OrderedModel(context_, order));
    if (!ppo || reward_.empty()) return absl::OkStatus();
    order.mutable_ref()->set_model("reward");
    order.mutable_checkpoint()->set_directory(reward_);
    order.set_folder("reward");
    COX_ASSIGN_OR_RETURN(served_.emplace_back(), OrderedModel(context_, order));
    return absl::OkStatus();
  }

  std::string Folder(const RatesStage& stage, int64_t step) const {
    return JoinPath(job_.dir, absl::StrCat("checkpoints/stage_", stage.stage,
                                           "/step_", step));
  }

  // Starts to write what the run writes; beside the steps that follow.
  absl::Status BeginCheckpoint(const RatesStage& stage, int64_t step,
                               StageTrainer& trainer,
                               CheckpointWriter* writer) {
    if (rank_ == 0) {
      CheckpointJob job;
      job.directory = Folder(stage, step);
      COX_ASSIGN_OR_RETURN(const auto trained, trainer.Trained());
      job.identity = {.run_id = std::string(32, '0'),
                      .config_hash = NoHash(),
                      .stage = stage.stage,
                      .step = step,
                      .generation = 1,
                      .batch_sha256 = NoHash(),
                      .weight_hash = trained->content_hash};
      COX_ASSIGN_OR_RETURN(job.contents.models, trainer.Models());
      job.contents.state = trainer.SaveState();
      if (job_.tokenizer != nullptr) {
        job.contents.save.tokenizer_json = job_.tokenizer->ToJson();
      }
      job.contents.save.eos_ids = job_.eos_ids;
      job.contents.save.pad_id = job_.pad_id;
      writer->Start(std::move(job));
    }
    return absl::OkStatus();
  }

  const RatesJob& job_;
  const int rank_;
  StageContext context_;
  std::string policy_;  // newest checkpoint with a policy
  std::string reward_;
  std::vector<std::shared_ptr<const Snapshot>> served_;
};

// Seconds of one optimizer step with the hash of the weights, alone.
absl::StatusOr<double> UpdateSeconds(const RatesJob& job) {
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<TrainEngine> engine,
                       MakeTrainEngine(EngineOptionsOf(job.config)));
  StageContext context;
  context.config = job.config;
  context.vocab_size = job.vocab_size;
  context.eos_ids = job.eos_ids;
  context.pad_id = job.pad_id;
  context.fs = &Fs::Real();
  COX_ASSIGN_OR_RETURN(const auto snapshot,
                       StartingPolicy(context, {}, "policy"));
  COX_RETURN_IF_ERROR(engine->Load(snapshot));
  COX_ASSIGN_OR_RETURN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(OptimizerOptions(), engine->layout()));
  return MedianSeconds([&]() -> absl::Status {
    COX_RETURN_IF_ERROR(optimizer.Apply(0, *engine).status());
    return SnapshotFromFloats(engine->layout(), engine->Parameters()).status();
  });
}

}  // namespace

absl::StatusOr<Json> RehearseLearner(const RatesJob& job, int rank, int world,
                                     int port) {
  std::unique_ptr<Collective> group = MakeSingleRank();
  if (world > 1) {
    GlooOptions options;
    options.port = port;
    options.rank = rank;
    options.world_size = world;
    options.prefix = "rehearsal";
    COX_ASSIGN_OR_RETURN(group, MakeGloo(options));
  }
  Json out;
  COX_ASSIGN_OR_RETURN(out["stages"],
                       LearnerRehearsal(job, rank, group.get()).Run());
  // After the peak of memory was read: this one is not part of a run.
  out["memory"] = PeakMemory();
  if (!job.stages.empty()) {
    COX_ASSIGN_OR_RETURN(out["update_s"], UpdateSeconds(job));
  }
  return out;
}

}  // namespace cox
