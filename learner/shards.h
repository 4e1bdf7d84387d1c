#ifndef COX_LEARNER_SHARDS_H_
#define COX_LEARNER_SHARDS_H_

// Fixed logical shards: what makes the weights independent of the number of
// ranks, bit for bit.
//
// A batch is dealt out to a fixed number of shards, element j to shard
// j % count, whatever the number of ranks. A shard is a forward and backward
// pass of its own, so its tensors have the same shapes on any rank. Shards are
// added in the tree of lib/comm/tree_sum.h: each rank adds those it owns, which
// are consecutive, and the collective adds the ranks. When the number of ranks
// divides that of shards and both are powers of two, each rank owns a subtree
// and the sum is the same. Scalars are gathered per shard and folded in shard
// order by every rank.

#include <cstdint>
#include <functional>
#include <span>
#include <type_traits>
#include <vector>

#include "learner/gradient_sum.h"
#include "lib/base/status.h"
#include "lib/comm/collective.h"
#include "lib/engine/engine.h"

namespace cox {

// Of a trainer that is told nothing else; runs have numerics.shards.
inline constexpr int64_t kDefaultShards = 4;

class Shards {
 public:
  // `group` is borrowed. INVALID_ARGUMENT: more ranks than shards.
  static absl::StatusOr<Shards> Create(
      int64_t count, Collective& group,
      const GradientSum::Options& sum = GradientSum::Options());

  int64_t count() const { return count_; }
  // This rank's shards: first() .. first() + own() - 1, at least one.
  int64_t first() const { return FirstOf(group_->rank()); }
  int64_t own() const { return FirstOf(group_->rank() + 1) - first(); }
  Collective& group() const { return *group_; }

  // shard, shard + count, ... below n.
  std::vector<int64_t> Elements(int64_t n, int64_t shard) const;

  // Calls `body` for each of this rank's shards, numbered over all ranks and
  // over this rank's own.
  absl::Status ForOwn(
      const std::function<absl::Status(int64_t shard, size_t own)>& body) const;

  // The same with gradients: zeroed before each shard, and in the end
  // Gradients() holds the sum over all shards of all ranks. Sums over ranks
  // begin while the last shard's last pass (BackwardMicroBatches) goes on, so
  // `body` must not use the group. A collective call.
  absl::Status Backward(
      TrainEngine& engine,
      const std::function<absl::Status(int64_t shard, size_t own)>& body);

  // One value per own shard -> those of all shards, in shard order, on every
  // rank. A collective call.
  template <typename T>
  absl::StatusOr<std::vector<T>> Gather(const std::vector<T>& own_values) const;

 private:
  Shards(int64_t count, Collective& group, const GradientSum::Options& sum)
      : count_(count), group_(&group), sum_(sum) {}
  int64_t FirstOf(int64_t rank) const {
    return rank * count_ / group_->world_size();
  }
  absl::Status GatherBytes(size_t size, std::span<const std::byte> own_values,
                           std::span<std::byte> all) const;

  int64_t count_;
  Collective* group_;
  GradientSum::Options sum_;
  // Sums of subtrees that wait for their neighbour; log2(own()) at most.
  std::vector<std::vector<float>> waiting_;
};

template <typename T>
absl::StatusOr<std::vector<T>> Shards::Gather(
    const std::vector<T>& own_values) const {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<T> all(static_cast<size_t>(count_));
  COX_RETURN_IF_ERROR(GatherBytes(sizeof(T),
                                  std::as_bytes(std::span(own_values)),
                                  std::as_writable_bytes(std::span(all))));
  return all;
}

}  // namespace cox

#endif  // COX_LEARNER_SHARDS_H_
