#ifndef COX_REWARD_SCORERS_SCORER_H_
#define COX_REWARD_SCORERS_SCORER_H_

// One way to reward an answer. One strategy per file in this folder.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "reward/lexicon.h"
#include "reward/table_reward.h"

namespace cox {

struct ScoreInput {
  std::vector<int32_t> prompt_ids;       // decoder input
  std::vector<int32_t> response_ids;     // EOS included when sampled
  std::vector<int32_t> instruction_ids;  // encoder-decoder only
  std::string prompt_text;               // "" without tokenizer
  std::string response_text;
};

struct ScoreResult {
  bool scored = false;  // false: not trained on, `reason` says why
  double total = 0;     // finite
  std::vector<std::pair<std::string, double>> parts;  // finite each
  std::string reason;
};

// Thread-compatible: called by the driver thread only.
class Scorer {
 public:
  virtual ~Scorer() = default;
  // One result per input, in order; a function of each input alone.
  virtual absl::StatusOr<std::vector<ScoreResult>> Score(
      std::span<const ScoreInput> inputs) = 0;
};

// Part "rm": total = gain * raw + bias with the model's own normalisation
// (docs/algorithms.md §5). `engine` holds the model and outlives the scorer.
std::unique_ptr<Scorer> MakeRmScorer(ScoreEngine* engine);
// Part "lexicon": the valence of the answer's text. Shared: scorers of every
// request read one word list.
std::unique_ptr<Scorer> MakeLexiconScorer(
    std::shared_ptr<const LexiconScorer> lexicon);
// Part "table". Shared as above.
std::unique_ptr<Scorer> MakeTableScorer(
    std::shared_ptr<const TableReward> table);

}  // namespace cox

#endif  // COX_REWARD_SCORERS_SCORER_H_
