#include "tests/sim/model.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/core_types.h"
#include "lib/base/hash.h"
#include "lib/base/rng.h"

namespace cox::sim {
namespace {

constexpr int64_t kSftSteps = 1;

StagePlan Sft() {
  StagePlan stage;
  stage.kind = StageKind::kSft;
  stage.total_steps = kSftSteps;
  return stage;
}

StagePlan Units(StageKind kind, int64_t steps, int64_t prompts_per_step,
                int32_t unit_prompts) {
  StagePlan stage;
  stage.kind = kind;
  stage.total_steps = steps;
  stage.prompt_count = 3;
  stage.prompts_per_step = prompts_per_step;
  stage.unit_prompts = unit_prompts;
  return stage;
}

StagePlan RewardModel() {
  StagePlan stage;
  stage.kind = StageKind::kRm;
  return stage;  // total_steps comes with the comparisons
}

std::vector<StagePlan> StagesOf(int list) {
  switch (list) {
    case 0:
      return {Sft(), Units(StageKind::kPpo, 3, 2, 1)};
    case 1:
      return {Units(StageKind::kPpo, 4, 2, 1)};
    case 2:
      return {Sft(), Units(StageKind::kCollect, 1, 3, 2), RewardModel(),
              Units(StageKind::kPpo, 2, 2, 1)};
    default:
      return {Units(StageKind::kPpo, 3, 3, 1),
              Units(StageKind::kEval, 2, 2, 1)};
  }
}

SchedulePlan ScheduleOf(int schedule) {
  switch (schedule) {
    case 0:
      return {ScheduleMode::kSync, 0, 0};
    case 1:
      return {ScheduleMode::kFixedLag, 1, 0};
    case 2:
      return {ScheduleMode::kFixedLag, 2, 0};
    default:
      return {ScheduleMode::kStreaming, 0, 1};
  }
}

Oracle Compute(const Variant& variant) {
  Oracle oracle;
  RunPlan plan = MakePlan(variant);
  for (int32_t s = 0; s < plan.num_stages(); ++s) {
    if (plan.stage(s).kind == StageKind::kRm) {
      plan.SetTotalSteps(s, kRewardModelSteps);
    }
    const StagePlan& stage = plan.stage(s);
    const auto final_of = [&](int32_t before) {
      return before < 0
                 ? InitialWeights()
                 : oracle.weights.at({before, plan.stage(before).total_steps});
    };
    const int32_t last_ppo = plan.StageBefore(s, StageKind::kPpo);
    const bool compares = stage.kind == StageKind::kEval && last_ppo >= 0;
    std::map<int64_t, std::string> versions;
    versions[0] = final_of(plan.PolicyStageBefore(compares ? last_ppo : s));
    if (compares) {
      versions[1] = final_of(last_ppo);
    }
    TrainerState state = FreshState(versions[0]);
    for (int64_t t = 1; t <= stage.total_steps; ++t) {
      std::vector<BatchUnit> batch;
      for (int32_t i = 0; stage.has_units() && i < stage.units_per_step();
           ++i) {
        const UnitId unit{s, t, i};
        const std::string payload =
            UnitPayload(plan, unit, versions.at(plan.VersionFor(s, t).step), 0);
        oracle.units[unit] = Sha256Hex(std::string_view(payload));
        batch.push_back({unit, oracle.units[unit], {}});
      }
      if (stage.has_learner_steps()) {
        state.Step(stage.has_units() ? BatchHash(batch) : DataHash(s, t), 0);
        oracle.weights[{s, t}] = state.weights;
        versions[t] = state.weights;
      }
    }
  }
  return oracle;
}

bool TakeNumber(std::string_view text, int64_t* value) {
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

const char* ScheduleName(const Variant& variant) {
  constexpr const char* kNames[] = {"sync", "lag1", "lag2", "streaming"};
  return kNames[variant.schedule];
}

RunPlan MakePlan(const Variant& variant) {
  PlanOptions options;
  options.seed = 7;
  options.schedule = ScheduleOf(variant.schedule);
  options.stages = StagesOf(variant.stages);
  auto plan = RunPlan::Create(options);
  COX_CHECK(plan.ok());
  return *std::move(plan);
}

std::string UnitPayload(const RunPlan& plan, const UnitId& unit,
                        const std::string& weights, int64_t attempt) {
  std::string text = absl::StrCat(unit.ToString(), " ", weights);
  for (const PlannedPrompt& prompt : plan.PromptsOf(unit)) {
    const double uniform = TokenUniform(
        plan.seed() + static_cast<uint64_t>(attempt), prompt.prompt_id, 0, 0);
    uint64_t bits = 0;
    std::memcpy(&bits, &uniform, sizeof(bits));
    absl::StrAppend(&text, " ", prompt.row, ":", absl::Hex(bits));
  }
  return text;
}

std::string PlaceholderOf(const UnitId& unit, const std::string& weights,
                          int64_t version_step) {
  return absl::StrCat(unit.ToString(), " ", weights, " ", version_step,
                      " failed");
}

void TrainerState::Step(const std::string& batch_sha256, int64_t stray) {
  const std::string input = absl::StrCat(weights, moments, batch_sha256, stray);
  older[step] = weights;
  weights = Sha256Hex(std::string_view(input));
  moments = weights.substr(0, 16);
  ++step;
}

std::string TrainerState::Save() const {
  std::string text = absl::StrCat(step, " ", weights, " ", moments);
  for (const auto& [version, hash] : older) {
    absl::StrAppend(&text, " ", version, " ", hash);
  }
  return text;
}

bool TrainerState::Load(const std::string& text, TrainerState* state) {
  const std::vector<std::string> words = absl::StrSplit(text, ' ');
  if (words.size() < 3 || words.size() % 2 != 1 ||
      !TakeNumber(words[0], &state->step)) {
    return false;
  }
  state->weights = words[1];
  state->moments = words[2];
  state->older.clear();
  for (size_t i = 3; i < words.size(); i += 2) {
    int64_t version = 0;
    if (!TakeNumber(words[i], &version)) {
      return false;
    }
    state->older[version] = words[i + 1];
  }
  return true;
}

std::string InitialWeights() {
  static const std::string hash = Sha256Hex(std::string_view("initial"));
  return hash;
}

TrainerState FreshState(const std::string& weights) {
  TrainerState state;
  state.weights = weights;
  state.moments = std::string(16, '0');
  return state;
}

std::string DataHash(int32_t stage, int64_t step) {
  return Sha256Hex(std::string_view(absl::StrCat("data ", stage, " ", step)));
}

const Oracle& OracleOf(const Variant& variant) {
  thread_local std::map<Variant, Oracle> cache;
  auto found = cache.find(variant);
  if (found == cache.end()) {
    const bool streaming = variant.schedule == kSchedules - 1;
    found =
        cache.emplace(variant, streaming ? Oracle() : Compute(variant)).first;
  }
  return found->second;
}

}  // namespace cox::sim
