#include "cli/checkpoint_plan.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/plan.h"
#include "learner/checkpoint.h"
#include "learner/stage_options_service.h"
#include "lib/data/tokenizer.h"
#include "lib/engine/model_config.h"
#include "lib/weights/model_folder.h"

namespace cox {
namespace {

namespace files = std::filesystem;

std::string Size(uint64_t bytes) {
  const double b = static_cast<double>(bytes);
  return b < 1e9 ? absl::StrFormat("%.1f MB", b / 1e6)
                 : absl::StrFormat("%.1f GB", b / 1e9);
}

// The model that the learners will train.
absl::StatusOr<ModelConfig> PolicyConfig(const cox::v1::RunConfig& config,
                                         const std::string& run_dir) {
  Fs& fs = Fs::Real();
  if (!config.model().init().empty()) {
    COX_ASSIGN_OR_RETURN(const ModelFolder folder,
                         ReadModelTexts(fs, config.model().init()));
    return ModelConfig::FromJson(folder.config_json);
  }
  int64_t vocabulary = config.tokenizer().vocab_size();
  const std::string trained = JoinPath(run_dir, "tokenizer.json");
  if (config.tokenizer().kind() == "file" || fs.Exists(trained)) {
    COX_ASSIGN_OR_RETURN(
        const std::string json,
        ReadTokenizerJson(
            fs, fs.Exists(trained) ? trained : config.tokenizer().path()));
    COX_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::FromJson(json));
    vocabulary = tokenizer->vocab_size();
  }
  return ModelFromSettings(config.model(), vocabulary, {0}, 0);
}

uint64_t ArenaBytes(ModelConfig config, HeadKind head) {
  config.head = head;
  return static_cast<uint64_t>(ParameterLayout(config, "model").arena_bytes);
}

// Weights and two moments each.
uint64_t BytesOf(const cox::v1::RunConfig& config, StageKind kind,
                 const ModelConfig& policy) {
  const uint64_t arena = ArenaBytes(policy, HeadKind::kLanguageModel);
  const uint64_t scalar = ArenaBytes(policy, HeadKind::kScalar);
  if (kind == StageKind::kRm) {
    return 3 * scalar;
  }
  uint64_t bytes = 3 * arena;
  if (kind == StageKind::kPpo) {
    const bool critic = config.ppo().estimator() == "gae";
    bytes += critic ? 3 * scalar : 0;
    // The averaged weights: as a folder, and in the state.
    bytes += config.ppo().ema_decay() > 0 ? 2 * arena : 0;
    if (config.schedule().mode() == "fixed_lag") {
      bytes += static_cast<uint64_t>(config.schedule().lag()) * arena;
    }
  }
  return bytes;
}

int64_t StepsOf(const cox::v1::RunConfig& config, StageKind kind) {
  return kind == StageKind::kPretrain ? config.pretrain().steps()
         : kind == StageKind::kSft    ? config.sft().steps()
         : kind == StageKind::kPpo    ? config.ppo().steps()
                                      : 0;
}

int64_t KeptOf(const cox::v1::RunConfig& config, StageKind kind) {
  const cox::v1::CheckpointSettings& settings = config.checkpoint();
  const std::string& metric = settings.best_metric();
  const bool of_rollouts =
      metric.starts_with("objective/") || metric.starts_with("rollout/");
  int64_t kept = settings.keep_last();
  if (kind == StageKind::kPpo || !of_rollouts) {
    kept += settings.keep_best();
  }
  const int64_t steps = StepsOf(config, kind);
  return steps == 0 ? kept
                    : std::min(kept, (steps + settings.every() - 1) /
                                         settings.every());
}

uint64_t BytesBelow(const std::string& directory) {
  uint64_t bytes = 0;
  std::error_code error;
  for (files::recursive_directory_iterator it(directory, error), end;
       !error && it != end; it.increment(error)) {
    std::error_code unreadable;
    if (it->is_regular_file(unreadable)) {
      const uint64_t size = it->file_size(unreadable);
      bytes += unreadable ? 0 : size;
    }
  }
  return bytes;
}

// Of the disk on which `directory` is or will be.
uint64_t FreeBytes(const std::string& directory) {
  std::error_code error;
  files::path path = files::absolute(directory, error).lexically_normal();
  while (!files::exists(path, error) && path.has_parent_path() &&
         path != path.parent_path()) {
    path = path.parent_path();
  }
  const files::space_info space = files::space(path, error);
  return error ? UINT64_MAX : static_cast<uint64_t>(space.available);
}

}  // namespace

std::string CheckpointPlan::Text() const {
  std::string text;
  for (const StageCheckpoints& stage : stages) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", stage.stage, " ",
                    stage.kept, " x ", Size(stage.bytes));
  }
  return absl::StrCat(
      "checkpoints: ", text, "; at most ", Size(total_bytes), " at a time, ",
      free_bytes == UINT64_MAX ? "an unknown amount" : Size(free_bytes),
      " free in ", directory,
      there_bytes > 0
          ? absl::StrCat(" besides ", Size(there_bytes), " that are there")
          : "");
}

absl::Status CheckpointPlan::CheckFits() const {
  if (free_bytes == UINT64_MAX || total_bytes <= free_bytes + there_bytes) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      Text(),
      ": they cannot fit. Lower checkpoint.keep_last or "
      "checkpoint.keep_best, or put checkpoint.dir on another disk"));
}

absl::StatusOr<CheckpointPlan> PlanCheckpoints(const cox::v1::RunConfig& config,
                                               const std::string& run_dir) {
  CheckpointPlan plan;
  plan.directory = config.checkpoint().dir().empty()
                       ? JoinPath(run_dir, "checkpoints")
                       : config.checkpoint().dir();
  absl::StatusOr<ModelConfig> policy = PolicyConfig(config, run_dir);
  COX_RETURN_IF_ERROR(Annotate(policy.status(), "model"));
  uint64_t largest = 0;
  for (const std::string& name : config.stages()) {
    COX_ASSIGN_OR_RETURN(const StageKind kind, ParseStageKind(name));
    StagePlan stage;
    stage.kind = kind;
    if (!stage.has_learner_steps()) {
      continue;
    }
    const uint64_t bytes = BytesOf(config, kind, *policy);
    plan.stages.push_back({name, bytes, KeptOf(config, kind)});
    plan.total_bytes += bytes * static_cast<uint64_t>(plan.stages.back().kept);
    largest = std::max(largest, bytes);
  }
  plan.total_bytes += largest;
  plan.there_bytes = BytesBelow(plan.directory);
  plan.free_bytes = FreeBytes(plan.directory);
  return plan;
}

}  // namespace cox
