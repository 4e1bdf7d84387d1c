#ifndef COX_TESTS_OPS_RANKS_H_
#define COX_TESTS_OPS_RANKS_H_

// Ops marked ® run the multi-rank path: a thread per rank over the in-process
// communicator, each with the rows it owns, some rows per backward.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lib/algo/reducer.h"
#include "lib/base/status.h"
#include "tests/ops/args.h"

namespace cox::ops {

struct RankPlan {
  int world = 1;
  // Rows of each rank, in batch order; a rank may own none.
  std::vector<std::vector<int64_t>> rows;
  int64_t micro_batch = 0;  // rows per backward, >= 1
};

// The names every ® op takes.
#define COX_OPS_RANK_ARGS "world", "rank_of_row", "micro_batch"

absl::StatusOr<RankPlan> ReadRankPlan(const Args& args, int64_t batch);

// Runs body(rank, reducer) on a thread per rank and joins them. The first
// error that a rank caused itself; its peers are released.
absl::Status RunRanks(
    int world,
    const std::function<absl::Status(int rank, Reducer& reducer)>& body);

// Consecutive slices of at most plan.micro_batch of the rank's rows.
std::vector<std::vector<int64_t>> MicroBatches(const RankPlan& plan, int rank);

// Copies rows of a [B, ...] tensor; an empty tensor (absent argument) stays
// empty.
template <typename T>
std::vector<T> TakeRows(const Tensor<T>& tensor,
                        std::span<const int64_t> rows) {
  std::vector<T> taken;
  if (tensor.dims[0] == 0) return taken;
  const size_t stride = tensor.data.size() / tensor.dims[0];
  for (const int64_t row : rows) {
    taken.insert(taken.end(), tensor.data.begin() + row * stride,
                 tensor.data.begin() + (row + 1) * stride);
  }
  return taken;
}

// The reverse: writes a rank's rows into the whole. Ranks own disjoint rows,
// so they may write at the same time.
template <typename T>
void PutRows(std::span<const T> local, std::span<const int64_t> rows,
             std::vector<T>* whole) {
  if (rows.empty()) return;
  const size_t stride = local.size() / rows.size();
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t j = 0; j < stride; ++j) {
      (*whole)[rows[i] * stride + j] = local[i * stride + j];
    }
  }
}

}  // namespace cox::ops

#endif  // COX_TESTS_OPS_RANKS_H_
