#ifndef COX_LIB_METRICS_REGISTRY_H_
#define COX_LIB_METRICS_REGISTRY_H_

// What every metric means: formula, unit, source and the names that other
// trainers give it. The names are fixed; metrics.jsonl, TensorBoard,
// Prometheus, the report and `cox explain METRIC` all use them.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"

namespace cox {

struct MetricInfo {
  std::string_view name;     // "policy/approxkl"
  std::string_view unit;     // "nats"; "" = dimensionless
  std::string_view formula;  // over the minibatch or batch of all ranks
  std::string_view source;   // section of docs/algorithms.md, or "coxswain"
  // "trl:policy/approxkl_avg verl:actor/ppo_kl": other trainers' names for the
  // same quantity, blank-separated.
  std::string_view aliases;
};

// In the order of documentation; names are unique, aliases too.
std::span<const MetricInfo> AllMetrics();

// By name, or by an alias with or without its "trl:" prefix. nullptr if
// unknown.
const MetricInfo* FindMetric(std::string_view name_or_alias);

// A few lines for a terminal. NOT_FOUND with near names.
absl::StatusOr<std::string> ExplainMetric(std::string_view name_or_alias);

}  // namespace cox

#endif  // COX_LIB_METRICS_REGISTRY_H_
