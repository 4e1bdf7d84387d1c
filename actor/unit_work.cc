#include "actor/unit_work.h"

#include <algorithm>

namespace cox {

absl::Status ValidateUnitWork(const UnitWork& work) {
  const std::string where = absl::StrCat("unit ", work.unit.ToString());
  if (work.prompts.empty()) {
    return absl::InvalidArgumentError(where + ": no prompts");
  }
  if (work.samples_per_prompt < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": samples_per_prompt: expected >= 1, found ",
                     work.samples_per_prompt));
  }
  if (work.prompts.size() * static_cast<size_t>(work.samples_per_prompt) >
      kMaxUnitTrajectories) {
    return absl::InvalidArgumentError(where + ": too many samples");
  }
  for (size_t p = 0; p < work.prompts.size(); ++p) {
    if (work.prompts[p].ids.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": prompts[", p, "].ids: expected at least one"));
    }
  }
  return absl::OkStatus();
}

GenerateRequest MakeGenerateRequest(const UnitWork& work,
                                    const UnitSampling& sampling) {
  GenerateRequest request;
  request.seed = sampling.seed;
  request.max_new_tokens = sampling.max_new_tokens;
  request.pad_id = sampling.pad_id;
  request.sampling = sampling.sampling;
  request.stop_strings = sampling.stop_strings;
  request.tokenizer = sampling.tokenizer;
  const bool instructions = std::any_of(
      work.prompts.begin(), work.prompts.end(),
      [](const PromptInput& p) { return !p.instruction_ids.empty(); });
  for (const PromptInput& prompt : work.prompts) {
    for (int32_t k = 0; k < work.samples_per_prompt; ++k) {
      request.prompts.push_back(prompt.ids);
      if (instructions) request.instructions.push_back(prompt.instruction_ids);
      request.prompt_ids.push_back(prompt.prompt_id);
      request.sample_indices.push_back(static_cast<uint64_t>(k));
    }
  }
  return request;
}

absl::StatusOr<std::vector<Trajectory>> MakeTrajectories(
    const UnitWork& work, const GenerateResult& result) {
  const size_t samples = static_cast<size_t>(work.samples_per_prompt);
  const size_t rows = work.prompts.size() * samples;
  if (result.tokens.size() != rows || result.logprobs.size() != rows ||
      result.finish.size() != rows) {
    return absl::InternalError(
        absl::StrCat("unit ", work.unit.ToString(), ": expected ", rows,
                     " rows, generated ", result.tokens.size()));
  }
  std::vector<Trajectory> trajectories;
  trajectories.reserve(rows);
  for (size_t row = 0; row < rows; ++row) {
    const PromptInput& prompt = work.prompts[row / samples];
    Trajectory& t = trajectories.emplace_back();
    t.id = {.unit = work.unit,
            .prompt = static_cast<int32_t>(row / samples),
            .sample = static_cast<int32_t>(row % samples)};
    t.prompt_id = prompt.prompt_id;
    t.prompt_ids = prompt.ids;
    t.instruction_ids = prompt.instruction_ids;
    t.response_ids = result.tokens[row];
    t.behaviour_logprobs = result.logprobs[row];
    t.finish = result.finish[row];
    t.policy_hash = work.policy_hash;
    t.version = work.version;
    const absl::Status valid = t.Validate();
    if (!valid.ok()) {
      return absl::InternalError(absl::StrCat(
          "generated ", t.id.ToString(), ": ", std::string(valid.message())));
    }
  }
  return trajectories;
}

}  // namespace cox
