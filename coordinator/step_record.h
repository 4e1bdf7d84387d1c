#ifndef COX_COORDINATOR_STEP_RECORD_H_
#define COX_COORDINATOR_STEP_RECORD_H_

// What a step's row says of its batch, as functions of the batch: the
// coordinator writes it, whoever checks a ledger computes it again.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coordinator/ledger.h"
#include "lib/base/ids.h"

namespace cox {

struct BatchUnit {
  UnitId id;
  std::string sha256;
  PayloadRef payload;
};
std::vector<BatchUnit> ToBatchUnits(std::span<const UnitRow> rows);

// SHA-256 over "<unit> <payload sha256>\n" of the units in batch order.
std::string BatchHash(const std::vector<BatchUnit>& units);

// async/staleness_max and async/dropped of a step that trains on `units` and
// whose batch left `dropped` units out.
MetricList BatchMetrics(int64_t step, std::span<const UnitRow> units,
                        size_t dropped);

}  // namespace cox

#endif  // COX_COORDINATOR_STEP_RECORD_H_
