#include "learner/stage_service.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/best_of.h"
#include "learner/ppo_trainer.h"
#include "learner/preference_trainer.h"
#include "learner/rm_trainer.h"
#include "learner/stage_data_service.h"
#include "learner/stage_options_service.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

using SnapshotPtr = std::shared_ptr<const Snapshot>;

bool Names(const v1::CheckpointRef& checkpoint) {
  return !checkpoint.directory().empty();
}

// Every byte of a checkpoint is hashed before any is used.
absl::Status Verify(const StageContext& context,
                    const v1::CheckpointRef& checkpoint) {
  absl::StatusOr<CheckpointManifest> manifest = VerifyCheckpoint(
      *context.fs, checkpoint.directory(), checkpoint.manifest_sha256());
  if (absl::IsNotFound(manifest.status())) {
    return absl::DataLossError(std::string(manifest.status().message()));
  }
  return manifest.status();
}

absl::Status CheckVocabulary(const StageContext& context,
                             const Snapshot& policy) {
  COX_ASSIGN_OR_RETURN(const ModelConfig config,
                       ModelConfig::FromJson(policy.manifest.config_json));
  if (config.vocab_size < context.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("model: ", config.vocab_size,
                     " tokens, the tokenizer has ", context.vocab_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TrainEngine>> LoadEngine(
    const StageContext& context, SnapshotPtr snapshot) {
  COX_ASSIGN_OR_RETURN(std::unique_ptr<TrainEngine> engine,
                       context.make_engine());
  COX_RETURN_IF_ERROR(engine->Load(std::move(snapshot)));
  return engine;
}

// Weights of `folder` in the checkpoint to resume from; null at the start.
absl::StatusOr<SnapshotPtr> Resumed(const StageContext& context,
                                    const v1::Assignment& assignment,
                                    const std::string& folder) {
  if (!Names(assignment.resume())) {
    return SnapshotPtr();
  }
  return LoadModel(*context.fs,
                   JoinPath(assignment.resume().directory(), folder), folder);
}

absl::StatusOr<SnapshotPtr> PolicyOf(const StageContext& context,
                                     const v1::Assignment& assignment) {
  COX_ASSIGN_OR_RETURN(SnapshotPtr policy,
                       Resumed(context, assignment, "policy"));
  if (policy == nullptr) {
    COX_ASSIGN_OR_RETURN(
        policy, StartingPolicy(context, assignment.policy(), "policy"));
  }
  return policy;
}

// Folder of the reward model: of stage rm, else reward.path; "" = none.
absl::StatusOr<std::string> RewardFolder(const StageContext& context,
                                         const v1::Assignment& assignment) {
  if (Names(assignment.reward())) {
    COX_RETURN_IF_ERROR(Verify(context, assignment.reward()));
    return JoinPath(assignment.reward().directory(), "reward");
  }
  const v1::RewardSettings& reward = context.config.reward();
  return reward.kind() == "rm" ? reward.path() : std::string();
}

// The critic starts as the reward model, head, gain and bias included
// (docs/algorithms.md §14), else with a fresh head on the policy's trunk.
absl::StatusOr<SnapshotPtr> CriticOf(const StageContext& context,
                                     const v1::Assignment& assignment,
                                     const Snapshot& policy) {
  COX_ASSIGN_OR_RETURN(SnapshotPtr critic,
                       Resumed(context, assignment, "critic"));
  if (critic != nullptr) {
    return critic;
  }
  const uint64_t seed = context.config.seed();
  COX_ASSIGN_OR_RETURN(const std::string folder,
                       RewardFolder(context, assignment));
  if (folder.empty()) {
    return WithHead(policy, HeadKind::kScalar, "critic", seed);
  }
  COX_ASSIGN_OR_RETURN(const SnapshotPtr model,
                       LoadModel(*context.fs, folder, "critic"));
  return WithHead(*model, HeadKind::kScalar, "critic", seed);
}

absl::Status BuildLm(const StageContext& context,
                     const v1::Assignment& assignment, StageRun* run) {
  COX_ASSIGN_OR_RETURN(SnapshotPtr policy, PolicyOf(context, assignment));
  COX_RETURN_IF_ERROR(CheckVocabulary(context, *policy));
  COX_ASSIGN_OR_RETURN(run->policy, LoadEngine(context, std::move(policy)));
  const bool pretrain = assignment.stage_kind() == "pretrain";
  COX_ASSIGN_OR_RETURN(
      LmData data, pretrain ? LoadPretrainData(context, run->policy->config())
                            : LoadSftData(context, run->policy->config(),
                                          assignment.stage()));
  COX_ASSIGN_OR_RETURN(
      LmOptions options,
      ReadLm(pretrain ? context.config.pretrain() : context.config.sft(),
             assignment.total_steps()));
  options.shards = context.config.numerics().shards();
  options.dropout = DropoutOf(context.config, assignment.stage());
  run->source = std::move(data.source);
  COX_ASSIGN_OR_RETURN(run->trainer,
                       MakeLmTrainer(options, *run->policy, *context.group,
                                     *run->source, std::move(data.heldout)));
  return absl::OkStatus();
}

absl::Status BuildRm(const StageContext& context,
                     const v1::Assignment& assignment, StageRun* run) {
  COX_ASSIGN_OR_RETURN(SnapshotPtr reward,
                       Resumed(context, assignment, "reward"));
  if (reward == nullptr) {
    COX_ASSIGN_OR_RETURN(
        const SnapshotPtr policy,
        StartingPolicy(context, assignment.policy(), "policy"));
    COX_ASSIGN_OR_RETURN(reward, WithHead(*policy, HeadKind::kScalar, "reward",
                                          context.config.seed()));
  }
  COX_RETURN_IF_ERROR(CheckVocabulary(context, *reward));
  COX_ASSIGN_OR_RETURN(run->policy, LoadEngine(context, std::move(reward)));
  COX_ASSIGN_OR_RETURN(RmData data, LoadRmData(context, run->policy->config()));
  COX_ASSIGN_OR_RETURN(
      const RmOptions options,
      ReadRm(context.config, assignment.stage(), assignment.total_steps()));
  COX_ASSIGN_OR_RETURN(
      run->trainer,
      MakeRmTrainer(options, *run->policy, *context.group, std::move(data)));
  return absl::OkStatus();
}

absl::Status BuildPpo(const StageContext& context,
                      const v1::Assignment& assignment, StageRun* run) {
  COX_ASSIGN_OR_RETURN(
      const PpoOptions options,
      ReadPpo(context.config, assignment.stage(), assignment.total_steps()));
  COX_ASSIGN_OR_RETURN(const SnapshotPtr policy, PolicyOf(context, assignment));
  COX_RETURN_IF_ERROR(CheckVocabulary(context, *policy));
  COX_ASSIGN_OR_RETURN(run->policy, LoadEngine(context, policy));
  if (!options.rollout.group.has_value()) {
    COX_ASSIGN_OR_RETURN(SnapshotPtr critic,
                         CriticOf(context, assignment, *policy));
    COX_RETURN_IF_ERROR(CheckVocabulary(context, *critic));
    COX_ASSIGN_OR_RETURN(run->critic, LoadEngine(context, std::move(critic)));
  }
  if (options.ptx_coef > 0) {
    COX_ASSIGN_OR_RETURN(run->source,
                         LoadPtxText(context, run->policy->config()));
  }
  COX_ASSIGN_OR_RETURN(std::vector<Sequence> heldout,
                       LoadMeasuredText(context, run->policy->config()));
  COX_ASSIGN_OR_RETURN(
      run->trainer, MakePpoTrainer(options, {.policy = run->policy.get(),
                                             .critic = run->critic.get(),
                                             .group = context.group,
                                             .ptx = run->source.get(),
                                             .heldout = std::move(heldout)}));
  return absl::OkStatus();
}

// The policy to train, and the reference: model.reference, else the weights
// that the stage starts from.
absl::StatusOr<std::unique_ptr<TrainEngine>> LoadPreferenceEngines(
    const StageContext& context, const v1::Assignment& assignment,
    StageRun* run) {
  COX_ASSIGN_OR_RETURN(SnapshotPtr policy, PolicyOf(context, assignment));
  COX_RETURN_IF_ERROR(CheckVocabulary(context, *policy));
  COX_ASSIGN_OR_RETURN(run->policy, LoadEngine(context, std::move(policy)));
  const std::string& folder = context.config.model().reference();
  SnapshotPtr reference;
  if (folder.empty()) {
    COX_ASSIGN_OR_RETURN(
        reference, StartingPolicy(context, assignment.policy(), "reference"));
  } else {
    COX_ASSIGN_OR_RETURN(reference,
                         LoadModel(*context.fs, folder, "reference"));
  }
  COX_RETURN_IF_ERROR(CheckVocabulary(context, *reference));
  return LoadEngine(context, std::move(reference));
}

absl::Status BuildDpo(const StageContext& context,
                      const v1::Assignment& assignment, StageRun* run) {
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<TrainEngine> reference,
                       LoadPreferenceEngines(context, assignment, run));
  const ModelConfig& model = run->policy->config();
  COX_ASSIGN_OR_RETURN(const DpoData data, LoadDpoData(context, model));
  COX_ASSIGN_OR_RETURN(
      const DpoStageOptions options,
      ReadDpo(context.config, assignment.stage(), assignment.total_steps()));
  PreferenceParts parts = {.policy = run->policy.get(),
                           .reference = reference.get(),
                           .group = context.group};
  COX_ASSIGN_OR_RETURN(parts.text, LoadMeasuredText(context, model));
  COX_ASSIGN_OR_RETURN(
      run->trainer, MakeDpoTrainer(options.train, options.loss, parts, data));
  return absl::OkStatus();
}

absl::Status BuildKto(const StageContext& context,
                      const v1::Assignment& assignment, StageRun* run) {
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<TrainEngine> reference,
                       LoadPreferenceEngines(context, assignment, run));
  const ModelConfig& model = run->policy->config();
  COX_ASSIGN_OR_RETURN(const std::vector<LabelledRow> data,
                       LoadKtoData(context, model));
  COX_ASSIGN_OR_RETURN(
      const KtoStageOptions options,
      ReadKto(context.config, assignment.stage(), assignment.total_steps()));
  PreferenceParts parts = {.policy = run->policy.get(),
                           .reference = reference.get(),
                           .group = context.group};
  COX_ASSIGN_OR_RETURN(parts.text, LoadMeasuredText(context, model));
  COX_ASSIGN_OR_RETURN(
      run->trainer, MakeKtoTrainer(options.train, options.loss, parts, data));
  return absl::OkStatus();
}

// The best answer of each row, chosen by the ranking or by the reward model.
absl::StatusOr<std::vector<Sequence>> ChooseBest(
    const StageContext& context, const v1::Assignment& assignment,
    const LmOptions& options, const std::vector<Comparison>& rows) {
  if (context.config.rft().select() != "reward") {
    return BestByRank(rows);
  }
  COX_ASSIGN_OR_RETURN(const std::string folder,
                       RewardFolder(context, assignment));
  if (folder.empty()) {
    return absl::InvalidArgumentError(
        "rft.select: reward, but there is no reward model");
  }
  COX_ASSIGN_OR_RETURN(SnapshotPtr model,
                       LoadModel(*context.fs, folder, "reward"));
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<TrainEngine> reward,
                       LoadEngine(context, std::move(model)));
  COX_ASSIGN_OR_RETURN(const Shards shards,
                       Shards::Create(options.shards, *context.group));
  return BestByReward(rows, options.batch, *reward, shards);
}

absl::Status BuildRft(const StageContext& context,
                      const v1::Assignment& assignment, StageRun* run) {
  COX_ASSIGN_OR_RETURN(SnapshotPtr policy, PolicyOf(context, assignment));
  COX_RETURN_IF_ERROR(CheckVocabulary(context, *policy));
  COX_ASSIGN_OR_RETURN(run->policy, LoadEngine(context, std::move(policy)));
  const ModelConfig& model = run->policy->config();
  COX_ASSIGN_OR_RETURN(const std::vector<Comparison> rows,
                       LoadRftData(context, model));
  COX_ASSIGN_OR_RETURN(LmOptions options,
                       ReadRft(context.config, assignment.total_steps()));
  options.dropout = DropoutOf(context.config, assignment.stage());
  COX_ASSIGN_OR_RETURN(std::vector<Sequence> best,
                       ChooseBest(context, assignment, options, rows));
  if (best.empty()) {
    return absl::InvalidArgumentError("rft: no answer to train on");
  }
  run->source = MakeExampleSource(std::move(best), context.config.seed(),
                                  absl::StrCat("rft/", assignment.stage()));
  COX_ASSIGN_OR_RETURN(std::vector<Sequence> text,
                       LoadMeasuredText(context, model));
  COX_ASSIGN_OR_RETURN(run->trainer,
                       MakeLmTrainer(options, *run->policy, *context.group,
                                     *run->source, std::move(text)));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<StageRun> BuildStage(const StageContext& context,
                                    const v1::Assignment& assignment) {
  if (Names(assignment.resume())) {
    COX_RETURN_IF_ERROR(Verify(context, assignment.resume()));
  }
  StageRun run;
  const std::string& kind = assignment.stage_kind();
  if (kind == "pretrain" || kind == "sft") {
    COX_RETURN_IF_ERROR(BuildLm(context, assignment, &run));
  } else if (kind == "rm") {
    COX_RETURN_IF_ERROR(BuildRm(context, assignment, &run));
  } else if (kind == "rft") {
    COX_RETURN_IF_ERROR(BuildRft(context, assignment, &run));
  } else if (kind == "dpo") {
    COX_RETURN_IF_ERROR(BuildDpo(context, assignment, &run));
  } else if (kind == "kto") {
    COX_RETURN_IF_ERROR(BuildKto(context, assignment, &run));
  } else if (kind == "ppo") {
    COX_RETURN_IF_ERROR(BuildPpo(context, assignment, &run));
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "stage ", assignment.stage(), ": no training for '", kind, "'"));
  }
  if (Names(assignment.resume())) {
    COX_ASSIGN_OR_RETURN(
        const std::string state,
        context.fs->ReadAll(
            JoinPath(assignment.resume().directory(), "trainer/state.bin")));
    COX_RETURN_IF_ERROR(run.trainer->LoadState(state));
    if (run.trainer->completed_steps() != assignment.resume().step()) {
      return absl::DataLossError(
          absl::StrCat("checkpoint ", assignment.resume().directory(),
                       ": expected step ", assignment.resume().step(),
                       ", found ", run.trainer->completed_steps()));
    }
  }
  return run;
}

absl::StatusOr<SnapshotPtr> StartingPolicy(const StageContext& context,
                                           const v1::CheckpointRef& checkpoint,
                                           const std::string& model) {
  if (Names(checkpoint)) {
    COX_RETURN_IF_ERROR(Verify(context, checkpoint));
    return LoadModel(*context.fs, JoinPath(checkpoint.directory(), "policy"),
                     model);
  }
  const v1::ModelSettings& settings = context.config.model();
  if (!settings.init().empty()) {
    return LoadModel(*context.fs, settings.init(), model);
  }
  COX_ASSIGN_OR_RETURN(const ModelConfig config,
                       ModelFromSettings(settings, context.vocab_size,
                                         context.eos_ids, context.pad_id));
  const Manifest layout = ParameterLayout(config, model);
  std::vector<float> parameters(
      static_cast<size_t>(layout.arena_bytes) / sizeof(float), 0.0f);
  InitializeParameters(config, context.config.seed(), parameters);
  return SnapshotFromFloats(layout, parameters);
}

absl::StatusOr<SnapshotPtr> OrderedModel(const StageContext& context,
                                         const v1::PublishOrder& order) {
  const std::string& model = order.ref().model();
  SnapshotPtr snapshot;
  const std::string& reference = context.config.model().reference();
  if (model == "reference" && !reference.empty()) {
    COX_ASSIGN_OR_RETURN(snapshot, LoadModel(*context.fs, reference, model));
  } else if (Names(order.checkpoint())) {
    COX_RETURN_IF_ERROR(Verify(context, order.checkpoint()));
    COX_ASSIGN_OR_RETURN(
        snapshot,
        LoadModel(*context.fs,
                  JoinPath(order.checkpoint().directory(),
                           order.folder().empty() ? "policy" : order.folder()),
                  model));
  } else if (model == "reward") {
    COX_ASSIGN_OR_RETURN(
        snapshot,
        LoadModel(*context.fs, context.config.reward().path(), model));
  } else {
    COX_ASSIGN_OR_RETURN(snapshot, StartingPolicy(context, {}, model));
  }
  const std::string& expected = order.ref().content_hash();
  if (!expected.empty() && snapshot->content_hash != expected) {
    return absl::DataLossError(
        absl::StrCat(model, " of stage ", order.ref().version().stage(),
                     ", step ", order.ref().version().step(), ": expected ",
                     expected, ", found ", snapshot->content_hash));
  }
  return snapshot;
}

}  // namespace cox
