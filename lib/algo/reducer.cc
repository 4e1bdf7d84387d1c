#include "lib/algo/reducer.h"

#include <algorithm>

namespace cox {

absl::StatusOr<std::vector<double>> GatherSlots(std::span<const double> local,
                                                Reducer& reducer) {
  std::vector<double> slots(local.size() * reducer.world(), 0.0);
  std::copy(local.begin(), local.end(),
            slots.begin() + local.size() * reducer.rank());
  COX_RETURN_IF_ERROR(reducer.Sum(slots));
  return slots;
}

absl::StatusOr<std::vector<double>> GatherRows(std::span<const double> local,
                                               std::span<const int64_t> rows,
                                               int64_t total,
                                               Reducer& reducer) {
  if (rows.size() != local.size()) {
    return absl::InvalidArgumentError("rows: one index per local value");
  }
  std::vector<double> all(total, 0.0);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 0 || rows[i] >= total) {
      return absl::InvalidArgumentError(
          absl::StrCat("rows: index ", rows[i], " outside [0, ", total, ")"));
    }
    all[rows[i]] = local[i];
  }
  COX_RETURN_IF_ERROR(reducer.Sum(all));
  return all;
}

}  // namespace cox
