#ifndef COX_LIB_ALGO_REDUCER_H_
#define COX_LIB_ALGO_REDUCER_H_

// The only thing lib/algo needs from other ranks: a sum in float64. Statistics
// over the whole minibatch (docs/algorithms.md §1.1, §5.4) go through it, so
// they do not depend on how rows are dealt out to ranks. Every rank must make
// the same calls in the same order, also when it owns no row.

#include <cstdint>
#include <span>
#include <vector>

#include "lib/base/status.h"

namespace cox {

class Reducer {
 public:
  virtual ~Reducer() = default;
  virtual int rank() const = 0;
  virtual int world() const = 0;
  // Replaces `values` by their sum over all ranks. Blocks for the collective.
  virtual absl::Status Sum(std::span<double> values) = 0;
};

// One rank: sums are what they are.
class LocalReducer final : public Reducer {
 public:
  int rank() const override { return 0; }
  int world() const override { return 1; }
  absl::Status Sum(std::span<double>) override { return absl::OkStatus(); }
};

// Concatenation over ranks, [world, local.size()]; every rank gives the same
// number of values. Exact: each slot has one non-zero contribution. Values
// must be finite.
absl::StatusOr<std::vector<double>> GatherSlots(std::span<const double> local,
                                                Reducer& reducer);

// Global vector of `total` elements: element rows[i] is local[i] of the rank
// that owns it, 0 if none does. Exact for finite values. INVALID_ARGUMENT
// ("rows") if an index is out of range.
absl::StatusOr<std::vector<double>> GatherRows(std::span<const double> local,
                                               std::span<const int64_t> rows,
                                               int64_t total, Reducer& reducer);

}  // namespace cox

#endif  // COX_LIB_ALGO_REDUCER_H_
