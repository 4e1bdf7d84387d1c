#ifndef COX_LEARNER_RM_TRAINER_H_
#define COX_LEARNER_RM_TRAINER_H_

// Stage rm: a reward model from ranked completions (docs/algorithms.md §4).
// One prompt with its K completions is one element: one forward for each
// completion, all pairs of different rank in one step.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "learner/comparisons.h"
#include "learner/optimizer.h"
#include "learner/shards.h"
#include "learner/trainer.h"
#include "lib/algo/rm_loss.h"
#include "lib/algo/rollout.h"

namespace cox {

struct RmOptions {
  int32_t stage = 0;  // names the stream of the data order
  uint64_t seed = 0;
  int64_t batch = 32;       // prompts per step, over all ranks; the last step
                            // of a pass over the data may have fewer
  int64_t micro_batch = 0;  // prompts per backward; 0 = a whole shard
  int64_t shards = kDefaultShards;
  int64_t total_steps = 1;
  RmPairwiseOptions loss;
  OptimizerOptions optimizer;
  double dropout = 0;  // rate
  std::optional<NormalizeMode> normalize = NormalizeMode::kBias;
};

struct RmData {
  std::vector<Comparison> train;         // not empty
  std::vector<Comparison> heldout;       // rm/heldout_*; may be empty
  std::vector<Comparison> human;         // rm/human_*; may be empty
  std::vector<Sequence> demonstrations;  // for the normalisation
};

// Metrics: loss/rm, rm/{accuracy,margin,mean,std} (training batch), lr,
// grad_norm/rm; at the last step also rm/heldout_accuracy, rm/heldout_margin,
// rm/human_accuracy, rm/human_margin, rm/reward_gain and rm/reward_bias. Gain
// and bias are written into the configuration of the trained model.
absl::StatusOr<std::unique_ptr<StageTrainer>> MakeRmTrainer(
    const RmOptions& options, TrainEngine& reward, Collective& group,
    RmData data);

}  // namespace cox

#endif  // COX_LEARNER_RM_TRAINER_H_
