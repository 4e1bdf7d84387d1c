#ifndef COX_LIB_ALGO_STALENESS_H_
#define COX_LIB_ALGO_STALENESS_H_

// Bounded staleness of asynchronous training (docs/algorithms.md §7).

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lib/algo/shape.h"

namespace cox {

struct StalenessState {
  int64_t eta_max = 0;  // >= 0
  int64_t batch = 1;    // B_train > 0
  // nullopt = unlimited
  std::optional<int64_t> max_concurrent = std::nullopt;
  int64_t version = 0;   // committed steps
  int64_t accepted = 0;  // rollouts accepted so far
  int64_t running = 0;
};
// New rollouts that may start now, >= 0.
absl::StatusOr<int64_t> StalenessCapacity(const StalenessState& state);

// η of one sample = trainer version − oldest token version; 0 without tokens.
// INVALID_ARGUMENT ("token_versions") if a token is newer than the trainer.
absl::StatusOr<int64_t> SampleStaleness(
    int64_t trainer_version, std::span<const int64_t> token_versions);

}  // namespace cox

#endif  // COX_LIB_ALGO_STALENESS_H_
