#ifndef COX_COORDINATOR_POD_COSTS_H_
#define COX_COORDINATOR_POD_COSTS_H_

// Which actors a scale-down should take first: those without a unit. A pod's
// annotation `controller.kubernetes.io/pod-deletion-cost` says so to the
// Deployment; the lower, the sooner. Pure.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace cox {

inline constexpr char kPodDeletionCost[] =
    "controller.kubernetes.io/pod-deletion-cost";
// Of a pod with open units. Two values only: a patch per unit would be a burden
// for the API server, and how many units are open says little.
inline constexpr int64_t kBusyCost = 100;

struct PodCost {
  std::string pod;
  int64_t cost = 0;
};

class PodCosts {
 public:
  // What must be patched, by pod. `open_units`: of every live actor; a pod's
  // name is its actor's. Without an annotation the cost counts as 0.
  std::vector<PodCost> Due(const std::map<std::string, int64_t>& open_units);
  void Sent(const PodCost& cost) { sent_[cost.pod] = cost.cost; }

 private:
  std::map<std::string, int64_t> sent_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_POD_COSTS_H_
