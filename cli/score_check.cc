#include "cli/score_check.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/fs.h"
#include "reward/scorers/scorer.h"

namespace cox {
namespace {

// The reward model's own score: a total may have other parts.
std::optional<double> RecordedScore(const Trajectory& answer) {
  for (const auto& [name, value] : answer.reward_parts) {
    if (name == "rm") return value;
  }
  return std::nullopt;
}

absl::Status CompareUnit(const std::vector<Trajectory>& answers, Scorer& scorer,
                         ScoreVerdict* verdict) {
  std::vector<ScoreInput> inputs;
  std::vector<const Trajectory*> scored;
  for (const Trajectory& answer : answers) {
    if (!RecordedScore(answer).has_value()) continue;
    scored.push_back(&answer);
    ScoreInput& input = inputs.emplace_back();
    input.prompt_ids = answer.prompt_ids;
    input.response_ids = answer.response_ids;
    input.instruction_ids = answer.instruction_ids;
  }
  COX_ASSIGN_OR_RETURN(const std::vector<ScoreResult> results,
                       scorer.Score(inputs));
  for (size_t i = 0; i < results.size(); ++i) {
    const double recorded = *RecordedScore(*scored[i]);
    const double difference = std::abs(results[i].total - recorded);
    ++verdict->answers;
    verdict->max_difference = std::max(verdict->max_difference, difference);
    if (difference <= kScoreTolerance) continue;
    if (verdict->differing++ == 0) {
      verdict->first = absl::StrCat(scored[i]->id.ToString(), ": recorded ",
                                    recorded, ", computed ", results[i].total);
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string RewardModelFolder(const RecordedRun& run,
                              const cox::v1::RunConfig& config, int32_t stage) {
  if (config.reward().kind() != "rm") return "";
  const int32_t rm = run.plan().StageBefore(stage, StageKind::kRm);
  const CheckpointRow* checkpoint =
      rm < 0 ? nullptr : run.NewestCheckpoint(rm, INT64_MAX);
  if (checkpoint == nullptr) return config.reward().path();
  return JoinPath(run.DirectoryOf(*checkpoint), "reward");
}

absl::StatusOr<ScoreVerdict> CheckScores(const RecordedRun& run, int32_t stage,
                                         const StepRange& range,
                                         ScoreEngine* engine) {
  const std::unique_ptr<Scorer> scorer = MakeRmScorer(engine);
  ScoreVerdict verdict;
  for (const StepRow& row : run.state().steps) {
    if (row.stage != stage || !range.Takes(row.stage, row.step)) continue;
    COX_ASSIGN_OR_RETURN(const std::vector<UnitRow> units,
                         run.UnitsOfStep(row.stage, row.step));
    for (const UnitRow& unit : units) {
      if (run.IsRetired(unit)) continue;
      COX_ASSIGN_OR_RETURN(const std::vector<Trajectory> answers,
                           run.ReadUnit(unit));
      COX_RETURN_IF_ERROR(CompareUnit(answers, *scorer, &verdict));
    }
  }
  return verdict;
}

}  // namespace cox
