#ifndef COX_LEARNER_BATCHING_H_
#define COX_LEARNER_BATCHING_H_

// How a part of one global batch becomes tensors, and back. Which element
// belongs to which part: shards.h. Denominators are those of the whole batch
// (docs/algorithms.md §1.1).

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lib/algo/reducer.h"
#include "lib/base/hash.h"
#include "lib/base/status.h"
#include "lib/comm/collective.h"
#include "lib/engine/engine.h"

namespace cox {

// One sequence and which of its tokens are targets: ids[first_target ..].
struct Sequence {
  std::vector<int32_t> ids;              // at least one
  std::vector<int32_t> instruction_ids;  // encoder-decoder models only
  int64_t first_target = 1;              // >= 1; ids.size() = no target

  int64_t length() const { return static_cast<int64_t>(ids.size()); }
  int64_t targets() const {
    return length() > first_target ? length() - first_target : 0;
  }
};

// Right-padded to the longest row; `scored` marks the position before each
// target. REQUIRES: rows not empty.
TokenBatch MakeTokenBatch(std::span<const Sequence* const> rows);

// Place in an engine's [B, L] output that belongs to target t of row b (its
// log-prob, or the value of the state before it).
inline size_t TargetIndex(const TokenBatch& batch, const Sequence& sequence,
                          int64_t row, int64_t t) {
  return static_cast<size_t>(row * batch.length + sequence.first_target - 1 +
                             t);
}

// Dropout of a stage (docs/algorithms.md §13.1). A sequence is keyed by its
// place among all sequences of its step: element `place` of the random stream
// (seed, "dropout/<stage>/<step>"), so neither ranks nor micro-batches nor a
// resume change what is dropped.
struct DropoutOptions {
  double rate = 0;
  uint64_t seed = 0;
  int32_t stage = 0;
};
// Row r of `batch` is sequence places[r] of the step. Nothing at rate 0.
void AddDropout(const DropoutOptions& options, int64_t step,
                std::span<const int64_t> places, TokenBatch* batch);

// Calls `body` with consecutive parts of `rows`, at most `micro` long (0 = all
// at once); not at all when there are none.
absl::Status ForMicroBatches(
    std::span<const int64_t> rows, int64_t micro,
    const std::function<absl::Status(std::span<const int64_t>)>& body);

// The same for passes that add to the gradients of `engine`: announces the last
// one (TrainEngine::LastPass) unless `more` follow on the same shard.
absl::Status BackwardMicroBatches(
    TrainEngine& engine, std::span<const int64_t> rows, int64_t micro,
    const std::function<absl::Status(std::span<const int64_t>)>& body,
    bool more = false);

// Adds lengths, targets and tokens to a batch's identity.
void HashSequence(const Sequence& sequence, Sha256* hash);

// Sums in float64 over a Collective, for lib/algo.
class CollectiveReducer final : public Reducer {
 public:
  explicit CollectiveReducer(Collective& group) : group_(group) {}
  int rank() const override { return group_.rank(); }
  int world() const override { return group_.world_size(); }
  absl::Status Sum(std::span<double> values) override {
    return group_.AllReduceSum(values);
  }

 private:
  Collective& group_;
};

// True if an element is NaN or infinite. Such an output of one rank must not
// make that rank leave alone: it poisons its gradient with PoisonGradient, the
// sum carries it to all ranks, and all skip the update together.
bool AnyNonFinite(std::span<const float> values);
absl::Status PoisonGradient(TrainEngine& engine);

}  // namespace cox

#endif  // COX_LEARNER_BATCHING_H_
