#include "coordinator/pod_costs.h"

namespace cox {

std::vector<PodCost> PodCosts::Due(
    const std::map<std::string, int64_t>& open_units) {
  std::erase_if(sent_, [&](const auto& entry) {
    return open_units.count(entry.first) == 0;
  });
  std::vector<PodCost> due;
  for (const auto& [pod, units] : open_units) {
    const int64_t cost = units > 0 ? kBusyCost : 0;
    const auto sent = sent_.find(pod);
    if ((sent == sent_.end() ? 0 : sent->second) != cost) {
      due.push_back({pod, cost});
    }
  }
  return due;
}

}  // namespace cox
