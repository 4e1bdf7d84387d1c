#ifndef COX_LEARNER_PPO_UPDATE_H_
#define COX_LEARNER_PPO_UPDATE_H_

// Forward and backward passes over shards of a RolloutBatch. Used
// by ppo_trainer.cc only.

#include <cstdint>
#include <span>
#include <vector>

#include "learner/ppo_trainer.h"
#include "lib/algo/value_loss.h"

namespace cox {

// A shard's share of one minibatch's sums.
struct PolicySums {
  double loss = 0;
  double kl_loss = 0;  // its KL term, weighted
  double entropy = 0;  // Σ over tokens
  double entropy_tokens = 0;
  double ratio_max_dev = 0;  // max |u - 1|
  PolicyLossSums loss_sums;
  bool finite = true;
  void Merge(const PolicySums& other);
};
struct ValueSums {
  double loss = 0;
  ValueLossSums loss_sums;
  bool finite = true;
  void Merge(const ValueSums& other);
};

// One minibatch: rows of the batch, over all shards, in permuted order.
struct Minibatch {
  int64_t size() const { return static_cast<int64_t>(rows.size()); }
  std::vector<int64_t> rows;  // place p belongs to shard p % shards
  LossNormalizer policy;      // counts of all its rows
  LossNormalizer value;
};

// Places m*N/M .. (m+1)*N/M - 1 of the epoch's permutation, which is drawn
// from CounterRng(seed, "ppo/<stage>/<step>/<epoch>"), without excluded
// sequences.
std::vector<Minibatch> MakeMinibatches(const RolloutBatch& batch,
                                       const PpoOptions& options, int64_t step,
                                       int64_t epoch);

// Fills batch->proximal and, with a critic, batch->values: each rank runs its
// shards of the batch, the sum of zero-filled arrays gives every rank all.
absl::Status FillModelOutputs(const PpoOptions& options, const PpoParts& parts,
                              const Shards& shards, RolloutBatch* batch);

// Accumulate gradients of one shard, `places` in the minibatch. A non-finite
// output poisons the gradient and clears `finite`.
absl::StatusOr<PolicySums> PolicyBackward(const PpoOptions& options,
                                          const PpoParts& parts,
                                          const RolloutBatch& batch,
                                          const Minibatch& minibatch,
                                          std::span<const int64_t> places,
                                          bool want_entropy);
absl::StatusOr<ValueSums> ValueBackward(const PpoOptions& options,
                                        const PpoParts& parts,
                                        const RolloutBatch& batch,
                                        const Minibatch& minibatch,
                                        std::span<const int64_t> places);

}  // namespace cox

#endif  // COX_LEARNER_PPO_UPDATE_H_
