#ifndef COX_LIB_METRICS_PROMETHEUS_H_
#define COX_LIB_METRICS_PROMETHEUS_H_

// Counters and gauges in Prometheus' text format 0.0.4. Numbers only: labels
// carry ids and enumerations, never prompts or answers. Serving the text is
// the business of each role's HTTP port.

#include <map>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "lib/base/sync.h"

namespace cox {

// {"stage", "ppo"}; part of a series' identity.
using PrometheusLabels = std::map<std::string, std::string>;

// Thread-safe; each call holds a lock for one map operation, Text() for the
// copy of all series. The first call for a name fixes its type; a later call
// of the other type for that name is ignored. At most kMaxSeries series are
// kept, so that labels from outside cannot exhaust memory; later ones are
// counted in cox_metrics_dropped_series.
class PrometheusRegistry {
 public:
  static constexpr int kMaxSeries = 10000;

  // Optional "# HELP" text of a family.
  void Describe(std::string_view name, std::string_view help);
  // Counter; `delta` >= 0 (negative or NaN is ignored).
  void Add(std::string_view name, double delta,
           const PrometheusLabels& labels = {});
  // Gauge.
  void Set(std::string_view name, double value,
           const PrometheusLabels& labels = {});
  // Gauges "cox_<name>" for all of a step's metrics, label stage.
  void SetMetrics(std::string_view stage,
                  const std::map<std::string, double>& metrics);

  // All families sorted by name, series sorted by labels.
  std::string Text() const;

 private:
  enum class Type { kCounter, kGauge };
  struct Family {
    Type type = Type::kGauge;
    bool typed = false;  // false: only described so far
    std::string help;
    std::map<std::string, double> series;  // by rendered labels
  };
  double* Find(std::string_view name, Type type, const PrometheusLabels& labels)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  std::map<std::string, Family> families_ ABSL_GUARDED_BY(mutex_);
  int series_ ABSL_GUARDED_BY(mutex_) = 0;
  double dropped_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Letters, digits, '_' and ':' stay, everything else becomes '_'; a leading
// digit gets a '_' before it. "objective/kl" -> "objective_kl".
std::string PrometheusName(std::string_view name);

}  // namespace cox

#endif  // COX_LIB_METRICS_PROMETHEUS_H_
