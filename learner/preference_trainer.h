#ifndef COX_LEARNER_PREFERENCE_TRAINER_H_
#define COX_LEARNER_PREFERENCE_TRAINER_H_

// Stages dpo and kto: the policy learns from preferences without a reward
// model and without sampling (docs/algorithms.md §8). One element is one row
// of the data. The reference's log-probs are computed once, when the trainer
// is made.

#include <cstdint>
#include <memory>
#include <vector>

#include "learner/comparisons.h"
#include "learner/optimizer.h"
#include "learner/shards.h"
#include "learner/trainer.h"
#include "lib/algo/preference_loss.h"

namespace cox {

struct PreferenceTrainOptions {
  int32_t stage = 0;  // names the stream of the data order
  uint64_t seed = 0;
  int64_t batch = 32;       // rows per step, over all ranks; the last step of
                            // a pass over the data may have fewer
  int64_t micro_batch = 0;  // rows per backward; 0 = a whole shard
  int64_t shards = kDefaultShards;
  int64_t total_steps = 1;
  OptimizerOptions optimizer;
};

// `policy` is trained; `reference` is used during the call only, a collective
// one. `text` is measured before the update of step 1 and after the last step;
// may be empty. Metrics of both: lr, grad_norm/policy, text/tokens (answer
// tokens of the batch), text/heldout_{nll,ppl}.
struct PreferenceParts {
  TrainEngine* policy = nullptr;
  ScoreEngine* reference = nullptr;
  Collective* group = nullptr;
  std::vector<Sequence> text = {};
};

struct DpoData {
  std::vector<Comparison> train;    // not empty
  std::vector<Comparison> heldout;  // may be empty
};
// All pairs of different rank of a row; the loss is the mean over the pairs of
// the step. Metrics: loss/dpo, dpo/{accuracy,reward_chosen,reward_rejected,
// margin}; before the update of step 1 and after the last step also
// dpo/heldout_{loss,accuracy,margin}. INVALID_ARGUMENT: no pair to train on, or
// the reference's log-probs are not finite.
absl::StatusOr<std::unique_ptr<StageTrainer>> MakeDpoTrainer(
    const PreferenceTrainOptions& options, const PreferenceOptions& loss,
    const PreferenceParts& parts, const DpoData& data);

// The loss is the mean over the step's labelled answers; its reference point z0
// comes from the step's prompts, each with the answer to the next other prompt
// of the data. Metrics: loss/kto, kto/{z0,accuracy,reward_desirable,
// reward_undesirable,margin}. INVALID_ARGUMENT as above.
absl::StatusOr<std::unique_ptr<StageTrainer>> MakeKtoTrainer(
    const PreferenceTrainOptions& options, const KtoOptions& loss,
    const PreferenceParts& parts, const std::vector<LabelledRow>& data);

}  // namespace cox

#endif  // COX_LEARNER_PREFERENCE_TRAINER_H_
