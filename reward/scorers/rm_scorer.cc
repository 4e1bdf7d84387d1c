#include <cmath>

#include "reward/scorers/scorer.h"
#include "reward/sequence_batch.h"

namespace cox {
namespace {

class RmStrategy : public Scorer {
 public:
  explicit RmStrategy(ScoreEngine* engine) : engine_(engine) {}

  absl::StatusOr<std::vector<ScoreResult>> Score(
      std::span<const ScoreInput> inputs) override {
    if (inputs.empty()) return std::vector<ScoreResult>();
    COX_ASSIGN_OR_RETURN(const TokenBatch batch, MakeSequenceBatch(inputs));
    COX_RETURN_IF_ERROR(batch.Validate(engine_->config()));
    COX_ASSIGN_OR_RETURN(const std::vector<float> raw, engine_->Scores(batch));
    if (raw.size() != inputs.size()) {
      return absl::InternalError(absl::StrCat("reward model: expected ",
                                              inputs.size(), " scores, found ",
                                              raw.size()));
    }
    const double gain = engine_->config().reward_gain;
    const double bias = engine_->config().reward_bias;
    std::vector<ScoreResult> results;
    for (size_t i = 0; i < raw.size(); ++i) {
      const double total = gain * double{raw[i]} + bias;
      if (!std::isfinite(total)) {
        return absl::InternalError(
            absl::StrCat("reward model: score of sequence ", i, " is ", total));
      }
      results.push_back({.scored = true,
                         .total = total,
                         .parts = {{"rm", total}},
                         .reason = ""});
    }
    return results;
  }

 private:
  ScoreEngine* const engine_;
};

}  // namespace

std::unique_ptr<Scorer> MakeRmScorer(ScoreEngine* engine) {
  return std::make_unique<RmStrategy>(engine);
}

}  // namespace cox
