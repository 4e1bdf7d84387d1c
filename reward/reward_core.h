#ifndef COX_REWARD_REWARD_CORE_H_
#define COX_REWARD_REWARD_CORE_H_

// How a request is scored, given what the run says about rewards.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "reward/scorers/scorer.h"

namespace cox {

struct RewardRulesOptions {
  std::string kind = "rm";   // RunConfig.reward.kind
  std::string table_path;    // kind table
  std::string lexicon_path;  // kind lexicon, and the gold part
};

// Everything that needs no model. Shared by the threads that read it.
struct RewardRules {
  std::string kind;
  std::shared_ptr<const TableReward> table;
  std::shared_ptr<const LexiconScorer> lexicon;
};

// Reads the files. NOT_FOUND / INVALID_ARGUMENT with the path.
absl::StatusOr<RewardRules> LoadRewardRules(Fs& fs,
                                            const RewardRulesOptions& options);

// `reward_model` non-null: scores by it; null: by the rules. Without either the
// sequences come back unscored with a reason. `gold` adds the lexicon's valence
// as part "gold", which never enters the total. INVALID_ARGUMENT, INTERNAL.
absl::StatusOr<std::vector<ScoreResult>> ScoreSequences(
    const RewardRules& rules, ScoreEngine* reward_model,
    std::span<const ScoreInput> inputs, bool gold);

}  // namespace cox

#endif  // COX_REWARD_REWARD_CORE_H_
