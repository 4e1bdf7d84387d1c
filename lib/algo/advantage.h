#ifndef COX_LIB_ALGO_ADVANTAGE_H_
#define COX_LIB_ALGO_ADVANTAGE_H_

// Advantages: GAE and the critic-free estimators (docs/algorithms.md §5.3,
// §5.5).

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lib/algo/reducer.h"
#include "lib/algo/shape.h"

namespace cox {

template <typename T>
struct GaeResult {
  std::vector<T> advantages;  // [B, T], unwhitened
  std::vector<T> returns;     // [B, T], advantages + values
};
// gamma, lambda in [0, 1]. Interior mask 0 positions are skipped; the
// bootstrap after the last token is 0.
template <typename T>
absl::StatusOr<GaeResult<T>> Gae(Shape2 shape, std::span<const T> rewards,
                                 std::span<const T> values, Mask mask,
                                 double gamma, double lambda);

enum class GroupEstimator {
  kRloo,
  kGrpo,
  kDrGrpo,
  kReinforcePp,
  kReinforcePpBaseline,
};
absl::StatusOr<GroupEstimator> ParseGroupEstimator(std::string_view name);

// Sequence advantages before whitening, one per row of the GLOBAL batch. Rows
// of a prompt share a group id (any ids, any order, any ranks). Invalid rows
// (valid[i] == 0; their score is not read) leave the baseline and get 0.
// INVALID_ARGUMENT ("group") if a group has one member, ("scores") if a valid
// score is not finite, ("kind") for kReinforcePp, which has no groups.
absl::StatusOr<std::vector<double>> GroupBaseline(
    GroupEstimator kind, std::span<const double> scores,
    std::span<const int64_t> group, std::span<const uint8_t> valid,
    double eps = 1e-6);

// What one rank gives. `scores`, `group` and `valid` cover the GLOBAL batch
// (tiny; see GatherRows); `rows[i]` is the global index of local row i.
template <typename T>
struct GroupInput {
  GroupEstimator kind = GroupEstimator::kGrpo;
  Shape2 shape;                      // of this rank's rows
  Mask mask;                         // this rank's rows
  std::span<const double> scores;    // [B global]
  std::span<const int64_t> group;    // [B global]
  std::span<const uint8_t> valid;    // [B global]; empty = all valid
  std::span<const int64_t> rows;     // [B local]; empty = 0..B−1
  std::span<const T> token_rewards;  // [B, T] local, kReinforcePp only
  double eps = 1e-6;                 // kGrpo only, >= 0
};
// Advantages of this rank's rows, [B, T]. The REINFORCE++ kinds whiten over
// the masked tokens of valid rows of all ranks (ddof 0, eps 1e-8); the others
// make no collective call. kReinforcePp reads token_rewards only.
template <typename T>
absl::StatusOr<std::vector<T>> GroupAdvantages(const GroupInput<T>& input,
                                               Reducer& reducer);

}  // namespace cox

#endif  // COX_LIB_ALGO_ADVANTAGE_H_
