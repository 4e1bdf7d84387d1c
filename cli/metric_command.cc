#include "cli/metric_command.h"

#include <cstdio>

#include "lib/base/process.h"
#include "lib/metrics/registry.h"

namespace cox {

int ExplainMetricCommand(const std::string& name) {
  if (name.empty()) {
    for (const MetricInfo& metric : AllMetrics()) {
      std::printf("%-30s %s\n", std::string(metric.name).c_str(),
                  std::string(metric.formula).c_str());
    }
    return kExitDone;
  }
  auto text = ExplainMetric(name);
  if (!text.ok()) {
    std::fprintf(stderr, "explain: %s\n",
                 std::string(text.status().message()).c_str());
    return kExitUsage;
  }
  std::fputs(text->c_str(), stdout);
  return kExitDone;
}

}  // namespace cox
