#include "lib/comm/inprocess.h"

#include <algorithm>
#include <utility>

#include "lib/base/sync.h"
#include "lib/comm/tree_sum.h"

namespace cox {
namespace {

// What one rank brings to a round.
struct Contribution {
  enum class Kind {
    kSumFloat,
    kSumDouble,
    kScatterSum,
    kBroadcast,
    kGather,
    kBarrier
  };
  Kind kind = Kind::kBarrier;
  std::span<float> floats = {};
  std::span<double> doubles = {};
  std::span<const float> blocks = {};  // scattered sum: all ranks' blocks
  std::span<const std::byte> in = {};
  std::span<std::byte> out = {};  // broadcast: the data
  int root = 0;

  bool Agrees(const Contribution& other) const {
    return kind == other.kind && floats.size() == other.floats.size() &&
           doubles.size() == other.doubles.size() &&
           blocks.size() == other.blocks.size() &&
           in.size() == other.in.size() && out.size() == other.out.size() &&
           root == other.root;
  }
};

// Sums in the order of TreeSum; every rank gets a copy of one result.
template <typename T, typename Span>
void SumOfAll(std::vector<Contribution>& all, Span span_of) {
  std::vector<std::span<T>> parts;
  for (Contribution& one : all) parts.push_back(span_of(one));
  TreeSum<T>(parts);
  for (size_t rank = 1; rank < parts.size(); ++rank) {
    std::copy(parts[0].begin(), parts[0].end(), parts[rank].begin());
  }
}

// all[r].floats receives block r of the sum of all[..].blocks.
void ScatterSum(std::vector<Contribution>& all) {
  std::vector<std::vector<float>> copies;
  std::vector<std::span<float>> parts;
  for (const Contribution& one : all) {
    copies.emplace_back(one.blocks.begin(), one.blocks.end());
  }
  for (std::vector<float>& copy : copies) parts.emplace_back(copy);
  TreeSum<float>(parts);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const std::span<float> out = all[rank].floats;
    std::copy_n(parts[0].begin() + static_cast<ptrdiff_t>(rank * out.size()),
                out.size(), out.begin());
  }
}

void Execute(std::vector<Contribution>& all) {
  switch (all[0].kind) {
    case Contribution::Kind::kSumFloat:
      SumOfAll<float>(all, [](Contribution& c) { return c.floats; });
      return;
    case Contribution::Kind::kSumDouble:
      SumOfAll<double>(all, [](Contribution& c) { return c.doubles; });
      return;
    case Contribution::Kind::kScatterSum:
      ScatterSum(all);
      return;
    case Contribution::Kind::kBroadcast: {
      const size_t root = static_cast<size_t>(all[0].root);
      for (size_t rank = 0; rank < all.size(); ++rank) {
        if (rank == root) continue;
        std::copy(all[root].out.begin(), all[root].out.end(),
                  all[rank].out.begin());
      }
      return;
    }
    case Contribution::Kind::kGather: {
      const size_t bytes = all[0].in.size();
      for (Contribution& to : all) {
        for (size_t rank = 0; rank < all.size(); ++rank) {
          std::copy(all[rank].in.begin(), all[rank].in.end(),
                    to.out.begin() + static_cast<ptrdiff_t>(rank * bytes));
        }
      }
      return;
    }
    case Contribution::Kind::kBarrier:
      return;
  }
}

// A round ends when the last rank arrives: it computes for all while the others
// wait under the lock, so no rank can leave with its memory still in use.
class Group {
 public:
  Group(int world_size, absl::Duration timeout)
      : timeout_(timeout), slots_(static_cast<size_t>(world_size)) {}

  absl::Status Run(int rank, const Contribution& mine) {
    MutexLock lock(&mutex_);
    if (!dead_.ok()) return dead_;
    slots_[static_cast<size_t>(rank)] = mine;
    ++arrived_;
    if (arrived_ == slots_.size()) return FinishRound();
    const uint64_t round = round_;
    const bool met =
        cv_.WaitFor(mutex_, timeout_, [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
          return round_ != round || !dead_.ok();
        });
    if (round_ != round) return absl::OkStatus();
    if (!met) {
      Kill(absl::DeadlineExceededError(absl::StrCat(
          "collective: ", arrived_, " of ", slots_.size(),
          " ranks arrived within ", absl::FormatDuration(timeout_))));
    }
    return dead_;
  }

  void Die(const absl::Status& why) {
    MutexLock lock(&mutex_);
    if (dead_.ok()) Kill(why);
  }

 private:
  absl::Status FinishRound() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (const Contribution& slot : slots_) {
      if (slot.Agrees(slots_[0])) continue;
      Kill(absl::InternalError(
          "collective: ranks called different operations or sizes"));
      return dead_;
    }
    Execute(slots_);
    arrived_ = 0;
    ++round_;
    cv_.NotifyAll();
    return absl::OkStatus();
  }

  void Kill(absl::Status why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    dead_ = std::move(why);
    cv_.NotifyAll();
  }

  const absl::Duration timeout_;
  Mutex mutex_;
  CondVar cv_;
  std::vector<Contribution> slots_ ABSL_GUARDED_BY(mutex_);
  size_t arrived_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t round_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status dead_ ABSL_GUARDED_BY(mutex_);
};

class InProcess : public Collective {
 public:
  // `group` is shared by the ranks of one world; the last one frees it.
  InProcess(std::shared_ptr<Group> group, int world_size, int rank)
      : group_(std::move(group)), world_size_(world_size), rank_(rank) {}
  ~InProcess() override {
    group_->Die(
        absl::AbortedError(absl::StrCat("collective: rank ", rank_, " left")));
  }
  InProcess(const InProcess&) = delete;
  InProcess& operator=(const InProcess&) = delete;

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  absl::Status AllReduceSum(std::span<float> data) override {
    return group_->Run(rank_,
                       {.kind = Contribution::Kind::kSumFloat, .floats = data});
  }
  absl::Status AllReduceSum(std::span<double> data) override {
    return group_->Run(
        rank_, {.kind = Contribution::Kind::kSumDouble, .doubles = data});
  }
  absl::Status ReduceScatterSum(std::span<const float> in,
                                std::span<float> out) override {
    COX_RETURN_IF_ERROR(
        CheckBlocks("reduce-scatter", in.size(), out.size(), world_size_));
    return group_->Run(
        rank_,
        {.kind = Contribution::Kind::kScatterSum, .floats = out, .blocks = in});
  }
  absl::Status Broadcast(std::span<std::byte> data, int root) override {
    COX_RETURN_IF_ERROR(CheckRoot(root, world_size_));
    return group_->Run(
        rank_,
        {.kind = Contribution::Kind::kBroadcast, .out = data, .root = root});
  }
  absl::Status AllGather(std::span<const std::byte> in,
                         std::span<std::byte> out) override {
    COX_RETURN_IF_ERROR(
        CheckBlocks("all-gather", out.size(), in.size(), world_size_));
    return group_->Run(
        rank_, {.kind = Contribution::Kind::kGather, .in = in, .out = out});
  }
  absl::Status Barrier() override {
    return group_->Run(rank_, {.kind = Contribution::Kind::kBarrier});
  }
  void Abort() override {
    group_->Die(absl::AbortedError("collective was aborted"));
  }

 private:
  const std::shared_ptr<Group> group_;
  const int world_size_;
  const int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Collective>> MakeInProcessGroup(
    int world_size, absl::Duration timeout) {
  COX_CHECK(world_size >= 1);
  auto group = std::make_shared<Group>(world_size, timeout);
  std::vector<std::unique_ptr<Collective>> ranks;
  for (int rank = 0; rank < world_size; ++rank) {
    ranks.push_back(std::make_unique<InProcess>(group, world_size, rank));
  }
  return ranks;
}

}  // namespace cox
