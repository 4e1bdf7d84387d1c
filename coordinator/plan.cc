#include "coordinator/plan.h"

#include <algorithm>
#include <array>
#include <utility>

#include "lib/base/rng.h"

namespace cox {
namespace {

constexpr std::array<std::string_view, 9> kKindNames = {
    "pretrain", "sft", "collect", "rm", "rft", "dpo", "kto", "ppo", "eval"};
constexpr int64_t kMaxPromptsPerStep = int64_t{1} << 20;
constexpr int64_t kMaxSteps = int64_t{1} << 28;
constexpr size_t kMaxStages = size_t{1} << 15;

}  // namespace

std::string_view StageKindName(StageKind kind) {
  return kKindNames[static_cast<size_t>(kind)];
}

absl::StatusOr<StageKind> ParseStageKind(std::string_view name) {
  for (size_t i = 0; i < kKindNames.size(); ++i) {
    if (kKindNames[i] == name) {
      return static_cast<StageKind>(i);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown stage '", std::string(name), "'"));
}

int32_t StagePlan::units_per_step() const {
  if (!has_units()) {
    return 0;
  }
  return static_cast<int32_t>((prompts_per_step + unit_prompts - 1) /
                              unit_prompts);
}

absl::StatusOr<RunPlan> RunPlan::Create(PlanOptions options) {
  if (options.stages.empty() || options.stages.size() > kMaxStages) {
    return absl::InvalidArgumentError("stages: at least one is needed");
  }
  for (const StagePlan& stage : options.stages) {
    const std::string name(StageKindName(stage.kind));
    if (stage.total_steps < 0 || stage.total_steps >= kMaxSteps) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": at most ", kMaxSteps - 1, " steps, found ",
                       stage.total_steps));
    }
    const bool needs_units = stage.kind == StageKind::kCollect ||
                             stage.kind == StageKind::kPpo ||
                             stage.kind == StageKind::kEval;
    if (!needs_units) {
      continue;
    }
    if (stage.prompt_count < 1 || stage.prompts_per_step < 1 ||
        stage.unit_prompts < 1 || stage.samples_per_prompt < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": no prompts to work on"));
    }
    if (stage.prompts_per_step > kMaxPromptsPerStep) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": at most ", kMaxPromptsPerStep,
                       " prompts per step, found ", stage.prompts_per_step));
    }
    if (stage.kind == StageKind::kPpo &&
        stage.prompts_per_step % stage.unit_prompts != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "ppo.unit_prompts: ", stage.unit_prompts,
          " does not divide ppo.prompts_per_step, ", stage.prompts_per_step));
    }
  }
  return RunPlan(std::move(options));
}

void RunPlan::SetTotalSteps(int32_t stage, int64_t total_steps) {
  options_.stages[static_cast<size_t>(stage)].total_steps = total_steps;
}

PolicyVersion RunPlan::VersionFor(int32_t stage, int64_t step) const {
  if (this->stage(stage).kind == StageKind::kPpo) {
    return {stage, std::max<int64_t>(0, step - 1 - schedule().lag)};
  }
  // collect: round 1 uses version 0. eval: round 1 the reference (version 0),
  // round 2 the final policy (version 1).
  return {stage, step - 1};
}

bool RunPlan::IsStreaming(int32_t stage) const {
  return this->stage(stage).kind == StageKind::kPpo &&
         schedule().mode == ScheduleMode::kStreaming;
}

int32_t RunPlan::SamplesPerPrompt(int32_t stage, int64_t step) const {
  const StagePlan& plan = this->stage(stage);
  return plan.kind == StageKind::kEval && step == 2
             ? plan.samples_per_prompt_final
             : plan.samples_per_prompt;
}

bool RunPlan::UnitExists(const UnitId& unit) const {
  if (unit.stage < 0 || unit.stage >= num_stages()) {
    return false;
  }
  const StagePlan& plan = stage(unit.stage);
  // Streaming may issue more rounds than steps, to replace dropped units.
  const int64_t last =
      IsStreaming(unit.stage) ? kMaxSteps - 1 : plan.total_steps;
  return plan.has_units() && unit.step >= 1 && unit.step <= last &&
         unit.index >= 0 && unit.index < plan.units_per_step();
}

std::vector<PlannedPrompt> RunPlan::PromptsOf(const UnitId& unit) const {
  COX_CHECK(UnitExists(unit));
  const StagePlan& plan = stage(unit.stage);
  const int64_t first = int64_t{unit.index} * plan.unit_prompts;
  const int64_t end =
      std::min<int64_t>(first + plan.unit_prompts, plan.prompts_per_step);
  // collect and eval start each round at the front of the data.
  const int64_t base = plan.kind == StageKind::kPpo
                           ? (unit.step - 1) * plan.prompts_per_step
                           : 0;
  std::vector<PlannedPrompt> prompts;
  prompts.reserve(static_cast<size_t>(end - first));
  for (int64_t place = first; place < end; ++place) {
    const int64_t position = base + place;
    const int64_t pass = position / plan.prompt_count;
    if (cached_stage_ != unit.stage || cached_pass_ != pass) {
      order_ =
          Permutation(plan.prompt_count, seed(),
                      absl::StrCat("prompts/", unit.stage, "/pass/", pass));
      cached_stage_ = unit.stage;
      cached_pass_ = pass;
    }
    PlannedPrompt prompt;
    prompt.prompt_id = (static_cast<uint64_t>(unit.stage) << 48) |
                       (static_cast<uint64_t>(unit.step) << 20) |
                       static_cast<uint64_t>(place);
    prompt.row = order_[static_cast<size_t>(position % plan.prompt_count)];
    prompts.push_back(prompt);
  }
  return prompts;
}

int32_t RunPlan::PolicyStageBefore(int32_t stage) const {
  for (int32_t i = stage - 1; i >= 0; --i) {
    if (this->stage(i).trains_policy()) {
      return i;
    }
  }
  return -1;
}

int32_t RunPlan::FirstTuningBefore(int32_t stage) const {
  for (int32_t i = 0; i < stage; ++i) {
    if (this->stage(i).tunes_policy()) {
      return i;
    }
  }
  return -1;
}

int32_t RunPlan::StageBefore(int32_t stage, StageKind kind) const {
  for (int32_t i = stage - 1; i >= 0; --i) {
    if (this->stage(i).kind == kind) {
      return i;
    }
  }
  return -1;
}

}  // namespace cox
