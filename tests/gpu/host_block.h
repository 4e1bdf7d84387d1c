#ifndef COX_TESTS_GPU_HOST_BLOCK_H_
#define COX_TESTS_GPU_HOST_BLOCK_H_

// A Block of lib/gpu/block.h made of threads of the host.

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <functional>
#include <vector>

#include "lib/base/thread.h"

namespace cox::gpu {

class HostBlock {
 public:
  struct Shared {
    explicit Shared(int threads)
        : barrier(threads), values(static_cast<size_t>(threads)) {}
    std::barrier<> barrier;
    std::vector<double> values;
  };
  HostBlock(Shared* shared, int rank) : shared_(shared), rank_(rank) {}
  int rank() const { return rank_; }
  int threads() const { return static_cast<int>(shared_->values.size()); }
  void Sync() const { shared_->barrier.arrive_and_wait(); }
  template <typename T>
  T Sum(T value) const {
    return Fold(value, [](T a, T b) { return a + b; });
  }
  template <typename T>
  T Max(T value) const {
    return Fold(value, [](T a, T b) { return std::max(a, b); });
  }
  double SumBefore(double value) const {
    Put(value);
    double sum = 0;
    for (int r = 0; r < rank_; ++r) {
      sum += shared_->values[static_cast<size_t>(r)];
    }
    Sync();
    return sum;
  }

 private:
  void Put(double value) const {
    shared_->values[static_cast<size_t>(rank_)] = value;
    Sync();
  }
  // Exact for float and for integers below 2^53.
  template <typename T, typename Op>
  T Fold(T value, Op op) const {
    Put(static_cast<double>(value));
    T out = static_cast<T>(shared_->values[0]);
    for (size_t r = 1; r < shared_->values.size(); ++r) {
      out = op(out, static_cast<T>(shared_->values[r]));
    }
    Sync();
    return out;
  }

  Shared* shared_;
  int rank_;
};

// Calls `body(block)` in each of the block's threads.
inline void RunBlock(int threads,
                     const std::function<void(const HostBlock&)>& body) {
  HostBlock::Shared shared(threads);
  std::vector<Thread> all;
  for (int r = 0; r < threads; ++r) {
    all.emplace_back("block",
                     [&shared, &body, r] { body(HostBlock(&shared, r)); });
  }
}

}  // namespace cox::gpu

#endif  // COX_TESTS_GPU_HOST_BLOCK_H_
