#ifndef COX_LEARNER_ROLLOUT_BATCH_H_
#define COX_LEARNER_ROLLOUT_BATCH_H_

// The numbers of one ppo step, from trajectories to advantages, in the order
// of docs/algorithms.md §5. Every rank holds the whole batch (a few floats per
// token) and computes the same statistics, so that no result depends on how
// sequences were dealt out. Pure.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "learner/batching.h"
#include "lib/algo/advantage.h"
#include "lib/algo/rollout.h"
#include "lib/data/trajectory.h"

namespace cox {

enum class RolloutSchedule { kSync, kFixedLag, kStreaming };

struct RolloutOptions {
  RolloutSchedule mode = RolloutSchedule::kSync;
  int64_t lag = 0;  // kFixedLag
  int64_t eta = 0;  // kStreaming: largest staleness
  int32_t stage = 0;
  std::optional<GroupEstimator> group;  // nullopt = GAE with a critic
  double gamma = 1.0;
  double lambda = 0.95;
  bool whiten_advantages = true;  // GAE only; REINFORCE++ always whitens
  bool whiten_rewards = false;    // where token rewards are used
  ShapeRewardsOptions shape;      // beta is given at each step
  bool needs_reference = true;    // beta or a KL loss may be above 0
  // Soft penalty for long answers, added to the score before `shape` (§6).
  int64_t overlong_max = 0;
  int64_t overlong_cache = 0;  // 0 = off
  // Train only on prompts whose answers have different scores, on the first
  // `train_prompts` of them (0 = all).
  bool dynamic_sampling = false;
  int64_t train_prompts = 0;
};

// All arrays are [N, T], row-major, 0 where `mask` is 0. T = longest answer.
struct RolloutBatch {
  std::vector<Sequence> sequences;    // [N], prompt and answer
  Shape2 shape;                       // N x T
  std::vector<uint8_t> mask;          // sampled tokens of trained sequences
  std::vector<uint8_t> trained;       // [N], 0 = excluded
  std::vector<int64_t> group;         // [N], equal for samples of a prompt
  std::vector<uint8_t> same_version;  // [N], sampled from the current weights
  std::vector<int64_t> version;       // [N], steps behind the sampling weights
  std::vector<FinishReason> finish;   // [N]
  std::vector<double> scores;         // [N], 0 where excluded
  std::vector<double> behaviour;
  std::vector<double> reference;
  bool has_reference = true;    // false: divergence counts as 0
  std::vector<float> proximal;  // filled by the trainer
  std::vector<float> values;    // filled by the trainer (GAE only)

  // Of ComputeAdvantages.
  std::vector<double> advantages;
  std::vector<double> returns;      // GAE only
  std::vector<uint8_t> value_mask;  // mask, and the place after the last
  std::vector<double> kl_sum;       // [N], sum of k1 (prox against ref)
  double mean_kl = 0;               // over trained sequences

  std::map<std::string, double> metrics;
  int64_t trained_count = 0;
  int64_t current_version = 0;  // of the weights at the step's start

  size_t At(int64_t row, int64_t t) const {
    return static_cast<size_t>(row * shape.cols + t);
  }
};

// Excluded, and counted in rollout/excluded: no reward, finish abort, an empty
// answer. INTERNAL when a version breaks the schedule's bound (the coordinator
// admits none, design invariant 5); INVALID_ARGUMENT when log-probs that
// training needs are absent. Metrics: objective/{scores,gold,entropy},
// rollout/{stop_frac,length,length_max,prompt_length,excluded,abort_frac,
// unscored_frac,units,group_std}, async/{staleness_max,staleness_mean}. With
// dynamic_sampling also rollout/{filtered,reserve,trained_prompts}: what it
// takes out is excluded like an answer without a reward, but those metrics are
// over all scored answers.
absl::StatusOr<RolloutBatch> MakeRolloutBatch(
    int64_t step, std::span<const Trajectory> trajectories,
    const RolloutOptions& options);

// True if a proximal log-prob or value under the mask is not finite: the step
// is skipped on all ranks.
bool HasNonFinite(const RolloutBatch& batch);

// Rewards, advantages and returns from `proximal` and `values`. Metrics:
// objective/{kl,score_total,non_score_reward}, offpolicy/{w_mean,w_max,ess},
// advantage/{mean,std} before whitening, val/{mean,return_mean},
// mismatch/{max_abs,k3} over sequences of the current version.
absl::Status ComputeAdvantages(const RolloutOptions& options, double beta,
                               RolloutBatch* batch);

}  // namespace cox

#endif  // COX_LEARNER_ROLLOUT_BATCH_H_
