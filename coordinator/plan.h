#ifndef COX_COORDINATOR_PLAN_H_
#define COX_COORDINATOR_PLAN_H_

// What a run does, worked out before it starts: the stages, how many steps and
// units each has, which version a unit is generated from and which prompts it
// holds. Everything here is a pure function of the options, so every restart
// and every replay sees the same plan.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/ids.h"
#include "lib/base/status.h"

namespace cox {

enum class StageKind {
  kPretrain,
  kSft,
  kCollect,
  kRm,
  kRft,
  kDpo,
  kKto,
  kPpo,
  kEval,
};

std::string_view StageKindName(StageKind kind);  // "pretrain", ...
// INVALID_ARGUMENT for an unknown name.
absl::StatusOr<StageKind> ParseStageKind(std::string_view name);

enum class ScheduleMode { kSync, kFixedLag, kStreaming };

struct SchedulePlan {
  ScheduleMode mode = ScheduleMode::kSync;
  int64_t lag = 0;  // kFixedLag, versions
  int64_t eta = 0;  // kStreaming, largest staleness in versions
  // Of CoreOptions::history_steps: a unit may be as old as staleness allows.
  int64_t StepsKept(int64_t history_steps) const {
    return std::max(history_steps, eta + lag + 2);
  }
};

struct StagePlan {
  StageKind kind = StageKind::kPretrain;
  // Steps to commit (learner stages) or rounds of units (collect 1, eval 1 or
  // 2). 0 for rm, rft, dpo and kto until the comparisons are known.
  int64_t total_steps = 0;
  int64_t prompt_count = 0;        // rows of the stage's prompt data
  int64_t prompts_per_step = 0;    // 0 = the stage has no units
  int32_t unit_prompts = 0;        // the last unit of a step may have fewer
  int32_t samples_per_prompt = 1;  // eval: of round 1
  int32_t samples_per_prompt_final = 1;  // eval: of round 2

  bool has_units() const { return prompts_per_step > 0; }
  // Leaves a policy in its checkpoint.
  bool trains_policy() const {
    return has_learner_steps() && kind != StageKind::kRm;
  }
  // Turns a policy towards preferences: what eval compares.
  bool tunes_policy() const {
    return trains_policy() && kind != StageKind::kPretrain &&
           kind != StageKind::kSft;
  }
  // Learners commit steps in this stage (collect and eval have none).
  bool has_learner_steps() const {
    return kind != StageKind::kCollect && kind != StageKind::kEval;
  }
  int32_t units_per_step() const;
};

struct PlanOptions {
  uint64_t seed = 0;
  std::vector<StagePlan> stages;
  SchedulePlan schedule;  // of ppo
};

// A prompt's place in a unit.
struct PlannedPrompt {
  uint64_t prompt_id = 0;  // (stage << 48) | (step << 20) | place in the step
  int64_t row = 0;         // of the stage's prompt data
};

// Immutable except SetTotalSteps; thread-compatible.
class RunPlan {
 public:
  // INVALID_ARGUMENT: no stage, a stage with units but without prompts, sizes
  // that do not fit the prompt id (2^20 prompts a step, 2^28 steps, 2^15
  // stages), ppo.unit_prompts that does not divide ppo.prompts_per_step.
  static absl::StatusOr<RunPlan> Create(PlanOptions options);

  int32_t num_stages() const {
    return static_cast<int32_t>(options_.stages.size());
  }
  const StagePlan& stage(int32_t index) const {
    return options_.stages[static_cast<size_t>(index)];
  }
  const SchedulePlan& schedule() const { return options_.schedule; }
  uint64_t seed() const { return options_.seed; }
  const PlanOptions& options() const { return options_; }
  // For rm, rft, dpo and kto, once the comparisons are there.
  void SetTotalSteps(int32_t stage, int64_t total_steps);

  // The version that units of `step` are generated from. Not for streaming
  // ppo, where the lease decides.
  PolicyVersion VersionFor(int32_t stage, int64_t step) const;
  bool IsStreaming(int32_t stage) const;
  int32_t SamplesPerPrompt(int32_t stage, int64_t step) const;
  // Prompts of a unit in order. Passes over the data are permuted by
  // (seed, stage, pass); eval's two rounds visit the same rows in one order.
  // REQUIRES: the unit exists.
  std::vector<PlannedPrompt> PromptsOf(const UnitId& unit) const;
  bool UnitExists(const UnitId& unit) const;

  // Last stage before `stage` whose checkpoint holds a policy; -1 = none.
  int32_t PolicyStageBefore(int32_t stage) const;
  // First stage before `stage` that tunes the policy; -1 = none.
  int32_t FirstTuningBefore(int32_t stage) const;
  // Last stage of `kind` before `stage`; -1 = none.
  int32_t StageBefore(int32_t stage, StageKind kind) const;

 private:
  explicit RunPlan(PlanOptions options) : options_(std::move(options)) {}
  PlanOptions options_;
  // Permutation of the last pass asked for (8 bytes per row).
  mutable int32_t cached_stage_ = -1;
  mutable int64_t cached_pass_ = -1;
  mutable std::vector<int64_t> order_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_PLAN_H_
