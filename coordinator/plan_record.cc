#include "coordinator/plan_record.h"

#include <utility>

#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::pair<ScheduleMode, std::string_view> kModes[] = {
    {ScheduleMode::kSync, "sync"},
    {ScheduleMode::kFixedLag, "fixed_lag"},
    {ScheduleMode::kStreaming, "streaming"}};

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(
      absl::StrCat("ledger: the recorded plan: ", std::string(what)));
}

absl::Status ReadInt(const Json& json, const char* key, int64_t* value) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_number_integer()) {
    return Damaged(absl::StrCat("no number '", key, "'"));
  }
  *value = found->get<int64_t>();
  return absl::OkStatus();
}

absl::StatusOr<StagePlan> ReadStage(const Json& json) {
  if (!json.is_object() || !json.contains("kind") ||
      !json["kind"].is_string()) {
    return Damaged("a stage has no kind");
  }
  StagePlan stage;
  COX_ASSIGN_OR_RETURN(stage.kind,
                       ParseStageKind(json["kind"].get<std::string>()));
  int64_t unit_prompts = 0;
  int64_t samples = 0;
  int64_t samples_final = 0;
  COX_RETURN_IF_ERROR(ReadInt(json, "total_steps", &stage.total_steps));
  COX_RETURN_IF_ERROR(ReadInt(json, "prompt_count", &stage.prompt_count));
  COX_RETURN_IF_ERROR(
      ReadInt(json, "prompts_per_step", &stage.prompts_per_step));
  COX_RETURN_IF_ERROR(ReadInt(json, "unit_prompts", &unit_prompts));
  COX_RETURN_IF_ERROR(ReadInt(json, "samples_per_prompt", &samples));
  COX_RETURN_IF_ERROR(
      ReadInt(json, "samples_per_prompt_final", &samples_final));
  stage.unit_prompts = static_cast<int32_t>(unit_prompts);
  stage.samples_per_prompt = static_cast<int32_t>(samples);
  stage.samples_per_prompt_final = static_cast<int32_t>(samples_final);
  return stage;
}

}  // namespace

std::string PlanRecord(const PlanOptions& options) {
  Json json;
  json["seed"] = options.seed;
  for (const auto& [mode, name] : kModes) {
    if (mode == options.schedule.mode) {
      json["mode"] = std::string(name);
    }
  }
  json["lag"] = options.schedule.lag;
  json["eta"] = options.schedule.eta;
  json["stages"] = Json::array();
  for (const StagePlan& stage : options.stages) {
    Json row;
    row["kind"] = std::string(StageKindName(stage.kind));
    row["total_steps"] = stage.total_steps;
    row["prompt_count"] = stage.prompt_count;
    row["prompts_per_step"] = stage.prompts_per_step;
    row["unit_prompts"] = stage.unit_prompts;
    row["samples_per_prompt"] = stage.samples_per_prompt;
    row["samples_per_prompt_final"] = stage.samples_per_prompt_final;
    json["stages"].push_back(std::move(row));
  }
  return json.dump();
}

absl::StatusOr<PlanOptions> ParsePlanRecord(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("stages") ||
      !json["stages"].is_array() || !json.contains("mode") ||
      !json["mode"].is_string() || !json.contains("seed") ||
      !json["seed"].is_number_integer()) {
    return Damaged("an object with seed, mode and stages expected");
  }
  PlanOptions options;
  options.seed = json["seed"].get<uint64_t>();
  bool known = false;
  for (const auto& [mode, name] : kModes) {
    if (json["mode"].get<std::string>() == name) {
      options.schedule.mode = mode;
      known = true;
    }
  }
  if (!known) {
    return Damaged("unknown mode");
  }
  COX_RETURN_IF_ERROR(ReadInt(json, "lag", &options.schedule.lag));
  COX_RETURN_IF_ERROR(ReadInt(json, "eta", &options.schedule.eta));
  for (const Json& row : json["stages"]) {
    COX_ASSIGN_OR_RETURN(StagePlan stage, ReadStage(row));
    options.stages.push_back(stage);
  }
  return options;
}

}  // namespace cox
