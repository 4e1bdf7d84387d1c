#ifndef COX_LEARNER_PPO_TRAINER_H_
#define COX_LEARNER_PPO_TRAINER_H_

// Stage ppo: one step = one batch of trajectories with all its epochs and
// minibatches (docs/algorithms.md §5, §6, §7).
//
//   proximal log-probs and values under the weights of the step's start
//   -> rewards -> advantages -> for each epoch, for each minibatch:
//      policy (clipped loss + entropy + KL + coef * NLL of text) one update,
//      critic (clipped value loss)                               one update
//
// The clip centre is the proximal log-prob, recomputed here unless `prox` says
// otherwise, so that the ratio of the first minibatch is exactly 1; in
// fixed_lag and streaming the loss is also weighted by proximal / behaviour,
// truncated at 2 unless `is_mode` says otherwise (§7).

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "learner/lm_trainer.h"
#include "learner/optimizer.h"
#include "learner/rollout_batch.h"
#include "learner/trainer.h"
#include "lib/algo/policy_loss.h"

namespace cox {

// Where the proximal log-probs come from (§7). kBehaviour and kInterpolate
// save the forward pass; rewards and advantages then use the behaviour's.
enum class ProxMode { kRecompute, kBehaviour, kInterpolate };
absl::StatusOr<ProxMode> ParseProxMode(std::string_view name);

struct PpoOptions {
  RolloutOptions rollout;  // stage, schedule, estimator, reward shape
  uint64_t seed = 0;
  PolicyLossOptions loss;  // its is_mode is replaced by the one below
  // nullopt: none in sync and where the weight is 1 anyway, else
  // token_truncate. kNone: no weights.
  std::optional<IsMode> is_mode;
  ProxMode prox = ProxMode::kRecompute;
  double t_max = 0;          // of loss_agg const, tokens
  double temperature = 1.0;  // of generation
  int64_t epochs = 1;
  int64_t minibatches = 1;  // optimizer steps per epoch
  int64_t micro_batch = 0;  // sequences per backward; 0 = a whole shard
  int64_t shards = kDefaultShards;
  std::optional<double> value_clip = 0.2;
  double entropy_coef = 0;
  double target_kl = 0;  // leave the epochs above 1.5 times this; 0 = off
  OptimizerOptions optimizer;
  OptimizerOptions value_optimizer;
  int64_t value_warmup_steps = 0;          // first steps train the critic only
  std::optional<KlController> controller;  // required
  double kl_min = 0;        // least beta the controller may reach
  double ptx_coef = 0;      // 0 = off
  int64_t ptx_batch = 0;    // sequences per minibatch, over all ranks
  double ema_decay = 0;     // 0 = off
  int64_t total_steps = 0;  // held-out text is measured after this step too
  absl::Status Validate() const;
};

// `heldout`: text that is measured before the update of step 1 and after step
// total_steps, so that what the reward costs in text, and what ptx saves of it,
// shows; may be empty.
// `critic` is null for estimators without one; it gives gain * raw + bias with
// the reward model's gain and bias (its configuration). `ptx` is null without
// ptx_coef. All borrowed. Metrics: those of MakeRolloutBatch and
// ComputeAdvantages, and loss/{policy,value,ptx,kl}, lr, lr_value, episode,
// kl_coef, policy/{approxkl,clipfrac,ratio,entropy,updates},
// val/{error,clipfrac,explained_var}, grad_norm/{policy,value}, optim/skipped,
// of the first minibatch policy/first_{ratio_error,clipfrac,approxkl}, and of
// held-out text text/heldout_{nll,ppl}.
struct PpoParts {
  TrainEngine* policy = nullptr;
  TrainEngine* critic = nullptr;
  Collective* group = nullptr;
  const LmSource* ptx = nullptr;
  std::vector<Sequence> heldout = {};
};
absl::StatusOr<std::unique_ptr<StageTrainer>> MakePpoTrainer(
    const PpoOptions& options, const PpoParts& parts);

}  // namespace cox

#endif  // COX_LEARNER_PPO_TRAINER_H_
