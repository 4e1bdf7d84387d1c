#ifndef COX_LEARNER_LM_TRAINER_H_
#define COX_LEARNER_LM_TRAINER_H_

// Stages pretrain and sft: next-token loss over target tokens
// (docs/algorithms.md §3). The batch of step s is elements (s-1)*batch ..
// s*batch-1 of a source that is a pure function of the position, so there is
// no loader state and a resumed run meets the same data.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "learner/batching.h"
#include "learner/optimizer.h"
#include "learner/shards.h"
#include "learner/trainer.h"
#include "lib/data/batch.h"
#include "lib/data/cursor.h"

namespace cox {

// Endless training data by position. Thread-compatible.
class LmSource {
 public:
  virtual ~LmSource() = default;
  virtual Sequence At(int64_t position) const = 0;
};

// Blocks of packed text; every token but the first is a target. `start`: for
// encoder-decoder models, the decoder's first token, which is also the whole
// instruction.
std::unique_ptr<LmSource> MakePackedSource(PackedTokens tokens,
                                           std::optional<int32_t> start = {});
// Examples in a ShuffledCursor's order of (seed, stream). REQUIRES: not empty.
std::unique_ptr<LmSource> MakeExampleSource(std::vector<Sequence> examples,
                                            uint64_t seed, std::string stream);

// Targets: the completion with its end token, or every token but the first
// with `prompt_loss` (never an instruction's).
std::vector<Sequence> SftSequences(const std::vector<SftExample>& examples,
                                   bool prompt_loss);

struct LmOptions {
  std::string model = "policy";
  int64_t batch = 32;       // sequences per step, over all ranks
  int64_t micro_batch = 0;  // sequences per backward; 0 = a whole shard
  int64_t shards = kDefaultShards;
  int64_t total_steps = 1;
  OptimizerOptions optimizer;
  DropoutOptions dropout;
  int64_t heldout_every = 50;  // also at step 1 (before its update) and at
                               // the last step (after it); 0 = only these
};

// Metrics: loss/lm, lr, grad_norm/lm, text/tokens, and when held-out text
// is measured text/heldout_nll (nats per target) and text/heldout_ppl.
// Engine, group and source are borrowed. `heldout` may be empty.
absl::StatusOr<std::unique_ptr<StageTrainer>> MakeLmTrainer(
    const LmOptions& options, TrainEngine& policy, Collective& group,
    const LmSource& source, std::vector<Sequence> heldout);

// Backward of coef · mean NLL over `positions` of `source` that belong to
// `shard`, into the engine's gradients, without an update. `coef` scales the
// gradient only. Returns the shard's share of the mean NLL, NaN after a
// non-finite output (the gradient is then poisoned).
struct NllBackwardOptions {
  int64_t first_position = 0;
  int64_t count = 0;  // over all shards
  int64_t micro_batch = 0;
  double coef = 1.0;
  DropoutOptions dropout = {};  // none by default
  int64_t step = 0;             // of the dropout's stage
};
absl::StatusOr<double> AccumulateNll(const NllBackwardOptions& options,
                                     const Shards& shards, int64_t shard,
                                     const LmSource& source,
                                     TrainEngine& policy);

// text/heldout_nll and text/heldout_ppl of the weights as they are, at
// temperature 1, into `metrics`; nothing when `heldout` is empty. A collective
// call: all ranks pass the same text and get the same values. `micro_batch`
// bounds the sequences per forward; 0 = a whole shard.
absl::Status MeasureHeldout(const std::vector<Sequence>& heldout,
                            int64_t micro_batch, TrainEngine& policy,
                            const Shards& shards,
                            std::map<std::string, double>* metrics);

}  // namespace cox

#endif  // COX_LEARNER_LM_TRAINER_H_
