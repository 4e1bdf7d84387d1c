#include "reward/reward_core.h"

#include <cmath>

namespace cox {
namespace {

std::unique_ptr<Scorer> ChooseScorer(const RewardRules& rules,
                                     ScoreEngine* reward_model) {
  if (reward_model != nullptr) return MakeRmScorer(reward_model);
  if (rules.kind == "table" && rules.table != nullptr) {
    return MakeTableScorer(rules.table);
  }
  if (rules.kind == "lexicon" && rules.lexicon != nullptr) {
    return MakeLexiconScorer(rules.lexicon);
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<RewardRules> LoadRewardRules(Fs& fs,
                                            const RewardRulesOptions& options) {
  RewardRules rules;
  rules.kind = options.kind;
  if (options.kind == "table") {
    COX_ASSIGN_OR_RETURN(TableReward table,
                         TableReward::FromFile(fs, options.table_path));
    rules.table = std::make_shared<const TableReward>(std::move(table));
  }
  if (!options.lexicon_path.empty()) {
    COX_ASSIGN_OR_RETURN(LexiconScorer lexicon,
                         LexiconScorer::FromFile(fs, options.lexicon_path));
    rules.lexicon = std::make_shared<const LexiconScorer>(std::move(lexicon));
  } else if (options.kind == "lexicon") {
    return absl::InvalidArgumentError(
        "reward.lexicon: expected a path with reward.kind: lexicon");
  }
  return rules;
}

absl::StatusOr<std::vector<ScoreResult>> ScoreSequences(
    const RewardRules& rules, ScoreEngine* reward_model,
    std::span<const ScoreInput> inputs, bool gold) {
  std::vector<ScoreResult> results(inputs.size());
  if (auto scorer = ChooseScorer(rules, reward_model); scorer != nullptr) {
    COX_ASSIGN_OR_RETURN(results, scorer->Score(inputs));
  } else {
    for (ScoreResult& result : results) {
      result.reason = absl::StrCat(
          "no reward model was named, and reward.kind "
          "is ",
          rules.kind);
    }
  }
  if (gold && rules.lexicon != nullptr) {
    for (size_t i = 0; i < results.size(); ++i) {
      results[i].parts.emplace_back(
          "gold", rules.lexicon->Score(inputs[i].response_text));
    }
  }
  for (size_t i = 0; i < results.size(); ++i) {
    bool finite = std::isfinite(results[i].total);
    for (const auto& part : results[i].parts) {
      finite = finite && std::isfinite(part.second);
    }
    if (!finite) {
      return absl::InternalError(
          absl::StrCat("reward of sequence ", i, " is not finite"));
    }
  }
  return results;
}

}  // namespace cox
