#include "lib/algo/staleness.h"

#include <algorithm>
#include <limits>

namespace cox {

absl::StatusOr<int64_t> StalenessCapacity(const StalenessState& state) {
  const auto not_negative = [](std::string_view name, int64_t value) {
    return CheckNotNegative(name, static_cast<double>(value));
  };
  COX_RETURN_IF_ERROR(not_negative("eta_max", state.eta_max));
  COX_RETURN_IF_ERROR(CheckPositive("batch", static_cast<double>(state.batch)));
  COX_RETURN_IF_ERROR(not_negative("version", state.version));
  COX_RETURN_IF_ERROR(not_negative("accepted", state.accepted));
  COX_RETURN_IF_ERROR(not_negative("running", state.running));
  // (η_max + v + 1)·B, saturated: eta_max may be "no bound" in a config.
  int64_t steps = 0;
  int64_t bound = 0;
  if (__builtin_add_overflow(state.eta_max, state.version, &steps) ||
      __builtin_add_overflow(steps, int64_t{1}, &steps) ||
      __builtin_mul_overflow(steps, state.batch, &bound)) {
    bound = std::numeric_limits<int64_t>::max();
  }
  int64_t capacity = std::max<int64_t>(bound - state.accepted, 0);
  capacity = std::max<int64_t>(capacity - state.running, 0);
  if (state.max_concurrent) {
    COX_RETURN_IF_ERROR(not_negative("max_concurrent", *state.max_concurrent));
    capacity = std::min(
        capacity, std::max<int64_t>(*state.max_concurrent - state.running, 0));
  }
  return capacity;
}

absl::StatusOr<int64_t> SampleStaleness(
    int64_t trainer_version, std::span<const int64_t> token_versions) {
  COX_RETURN_IF_ERROR(CheckNotNegative("trainer_version",
                                       static_cast<double>(trainer_version)));
  int64_t oldest = trainer_version;
  for (const int64_t version : token_versions) {
    if (version < 0 || version > trainer_version) {
      return absl::InvalidArgumentError(
          absl::StrCat("token_versions: ", version, " outside [0, ",
                       trainer_version, "], the trainer's version"));
    }
    oldest = std::min(oldest, version);
  }
  return trainer_version - oldest;
}

}  // namespace cox
