#include "reward/scorers/scorer.h"

namespace cox {
namespace {

class LexiconStrategy : public Scorer {
 public:
  explicit LexiconStrategy(std::shared_ptr<const LexiconScorer> lexicon)
      : lexicon_(std::move(lexicon)) {}

  absl::StatusOr<std::vector<ScoreResult>> Score(
      std::span<const ScoreInput> inputs) override {
    std::vector<ScoreResult> results;
    for (const ScoreInput& input : inputs) {
      const double valence = lexicon_->Score(input.response_text);
      results.push_back({.scored = true,
                         .total = valence,
                         .parts = {{"lexicon", valence}},
                         .reason = ""});
    }
    return results;
  }

 private:
  const std::shared_ptr<const LexiconScorer> lexicon_;
};

}  // namespace

std::unique_ptr<Scorer> MakeLexiconScorer(
    std::shared_ptr<const LexiconScorer> lexicon) {
  return std::make_unique<LexiconStrategy>(std::move(lexicon));
}

}  // namespace cox
