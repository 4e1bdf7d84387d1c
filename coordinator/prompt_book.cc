#include "coordinator/prompt_book.h"

#include <utility>

namespace cox {
namespace {

absl::Status CheckIdsBelow(const std::vector<int32_t>& ids, int64_t bound,
                           const char* name) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= bound) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": ids below ", bound, " expected, found ", id));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogprobs(const std::vector<float>& values, const char* name) {
  for (const float value : values) {
    if (!(value <= 0.0f)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": values <= 0 expected, found ", value));
    }
  }
  return absl::OkStatus();
}

}  // namespace

PromptBook::PromptBook(PromptBookOptions options, RunPlan plan,
                       std::map<int32_t, std::vector<PromptExample>> prompts)
    : options_(std::move(options)),
      prompts_(std::move(prompts)),
      plan_(std::move(plan)) {}

std::vector<BookPrompt> PromptBook::ForUnit(const UnitId& unit) const {
  std::vector<PlannedPrompt> planned;
  {
    MutexLock lock(&mutex_);
    planned = plan_.PromptsOf(unit);
  }
  const std::vector<PromptExample>& rows = prompts_.at(unit.stage);
  std::vector<BookPrompt> prompts;
  prompts.reserve(planned.size());
  for (const PlannedPrompt& plan : planned) {
    const PromptExample& row = rows[static_cast<size_t>(plan.row)];
    BookPrompt prompt;
    prompt.prompt_id = plan.prompt_id;
    prompt.text = row.text;
    prompt.ids = row.ids;
    prompt.instruction_ids = row.instruction_ids;
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

int32_t PromptBook::SamplesPerPrompt(const UnitId& unit) const {
  MutexLock lock(&mutex_);
  return plan_.SamplesPerPrompt(unit.stage, unit.step);
}

absl::Status PromptBook::CheckTrajectory(const Trajectory& t) const {
  const size_t length = t.response_ids.size();
  if ((length == 0 && t.finish != FinishReason::kAbort) ||
      static_cast<int64_t>(length) > options_.max_new_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("response_ids: 1..", options_.max_new_tokens,
                     " tokens expected, found ", length));
  }
  COX_RETURN_IF_ERROR(
      CheckIdsBelow(t.response_ids, options_.vocab_size, "response_ids"));
  if (t.behaviour_logprobs.size() != length) {
    return absl::InvalidArgumentError(
        absl::StrCat("behaviour_logprobs: ", length, " expected, found ",
                     t.behaviour_logprobs.size()));
  }
  COX_RETURN_IF_ERROR(
      CheckLogprobs(t.behaviour_logprobs, "behaviour_logprobs"));
  return CheckLogprobs(t.reference_logprobs, "reference_logprobs");
}

absl::StatusOr<int64_t> PromptBook::CheckUnit(
    const UnitId& unit, const std::string& policy_hash,
    const std::vector<Trajectory>& trajectories) const {
  {
    MutexLock lock(&mutex_);
    if (!plan_.UnitExists(unit)) {
      return absl::InvalidArgumentError(
          absl::StrCat("unit ", unit.ToString(), " is not in the plan"));
    }
  }
  const std::vector<BookPrompt> prompts = ForUnit(unit);
  const size_t samples = static_cast<size_t>(SamplesPerPrompt(unit));
  if (trajectories.size() != prompts.size() * samples) {
    return absl::InvalidArgumentError(
        absl::StrCat("unit ", unit.ToString(), ": ", prompts.size() * samples,
                     " trajectories expected, found ", trajectories.size()));
  }
  for (size_t i = 0; i < trajectories.size(); ++i) {
    const Trajectory& t = trajectories[i];
    const BookPrompt& prompt = prompts[i / samples];
    const TrajectoryId id{unit, static_cast<int32_t>(i / samples),
                          static_cast<int32_t>(i % samples)};
    if (t.id != id) {
      return absl::InvalidArgumentError(absl::StrCat(
          "trajectory ", id.ToString(), " expected, found ", t.id.ToString()));
    }
    if (t.prompt_id != prompt.prompt_id || t.prompt_ids != prompt.ids ||
        t.instruction_ids != prompt.instruction_ids) {
      return absl::InvalidArgumentError(absl::StrCat(
          "trajectory ", id.ToString(), ": its prompt is not the leased one"));
    }
    if (t.policy_hash != policy_hash || t.version.stage != unit.stage ||
        t.version != trajectories[0].version) {
      return absl::InvalidArgumentError(absl::StrCat(
          "trajectory ", id.ToString(), ": version ", t.version.ToString(),
          " with hash ", t.policy_hash, " is not the unit's"));
    }
    COX_RETURN_IF_ERROR(Annotate(CheckTrajectory(t), id.ToString()));
  }
  return trajectories[0].version.step;
}

absl::StatusOr<std::string> PromptBook::Placeholder(
    const UnitId& unit, const std::string& policy_hash,
    int64_t version_step) const {
  std::vector<Trajectory> rows;
  const int32_t samples = SamplesPerPrompt(unit);
  int32_t place = 0;
  for (const BookPrompt& prompt : ForUnit(unit)) {
    for (int32_t sample = 0; sample < samples; ++sample) {
      Trajectory& row = rows.emplace_back();
      row.id = {unit, place, sample};
      row.prompt_id = prompt.prompt_id;
      row.prompt_ids = prompt.ids;
      row.instruction_ids = prompt.instruction_ids;
      row.finish = FinishReason::kAbort;
      row.policy_hash = policy_hash;
      row.version = {unit.stage, version_step};
    }
    ++place;
  }
  return SerializeUnit(rows);
}

}  // namespace cox
