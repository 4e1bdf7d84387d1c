#include <optional>

#include "reward/scorers/scorer.h"

namespace cox {
namespace {

// What the row said: an encoder-decoder's decoder adds a start token.
std::vector<int32_t> PromptOf(const ScoreInput& input) {
  std::vector<int32_t> prompt = input.instruction_ids;
  std::span<const int32_t> rest = input.prompt_ids;
  if (!prompt.empty() && !rest.empty()) rest = rest.subspan(1);
  prompt.insert(prompt.end(), rest.begin(), rest.end());
  return prompt;
}

class TableStrategy : public Scorer {
 public:
  explicit TableStrategy(std::shared_ptr<const TableReward> table)
      : table_(std::move(table)) {}

  absl::StatusOr<std::vector<ScoreResult>> Score(
      std::span<const ScoreInput> inputs) override {
    std::vector<ScoreResult> results;
    for (const ScoreInput& input : inputs) {
      const std::optional<double> reward =
          table_->Lookup(PromptOf(input), input.response_ids);
      ScoreResult result;
      if (reward.has_value()) {
        result.scored = true;
        result.total = *reward;
        result.parts = {{"table", *reward}};
      } else {
        result.reason = "the table has no entry and no default";
      }
      results.push_back(std::move(result));
    }
    return results;
  }

 private:
  const std::shared_ptr<const TableReward> table_;
};

}  // namespace

std::unique_ptr<Scorer> MakeTableScorer(
    std::shared_ptr<const TableReward> table) {
  return std::make_unique<TableStrategy>(std::move(table));
}

}  // namespace cox
