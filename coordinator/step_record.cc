#include "coordinator/step_record.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "lib/base/hash.h"

namespace cox {

std::vector<BatchUnit> ToBatchUnits(std::span<const UnitRow> rows) {
  std::vector<BatchUnit> units;
  units.reserve(rows.size());
  for (const UnitRow& row : rows) {
    units.push_back({row.id, row.sha256, row.payload});
  }
  return units;
}

std::string BatchHash(const std::vector<BatchUnit>& units) {
  Sha256 hash;
  for (const BatchUnit& unit : units) {
    hash.Update(absl::StrCat(unit.id.ToString(), " ", unit.sha256, "\n"));
  }
  return hash.HexDigest();
}

MetricList BatchMetrics(int64_t step, std::span<const UnitRow> units,
                        size_t dropped) {
  int64_t oldest = step - 1;
  for (const UnitRow& unit : units) {
    oldest = std::min(oldest, unit.version_step);
  }
  return {{"async/staleness_max", static_cast<double>(step - 1 - oldest)},
          {"async/dropped", static_cast<double>(dropped)}};
}

}  // namespace cox
