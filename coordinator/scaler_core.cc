#include "coordinator/scaler_core.h"

#include <algorithm>
#include <cmath>

namespace cox {

double BufferedSeconds(const LoadView& load) {
  if (load.units_per_step <= 0) return 0;
  return static_cast<double>(load.ready_units) / load.units_per_step *
         load.learner_s;
}

int64_t WantedActors(const LoadView& load) {
  if (!load.needs_actors || load.units_per_step <= 0) return 0;
  const int64_t cap = std::max<int64_t>(1, load.max_in_flight);
  const bool known = load.unit_s > 0 && load.learner_s > 0;
  if (!load.overlapped || !known) {
    // The step's width, not what is open at this instant: between two steps
    // nothing is open, and pods must not come and go with every step.
    return std::clamp<int64_t>(load.units_per_step, 1, cap);
  }
  // As many as keep up with the learners ...
  const double steady = load.unit_s * load.units_per_step / load.learner_s;
  // ... more while less than one step lies ready, fewer above two.
  const double steps =
      static_cast<double>(load.ready_units) / load.units_per_step;
  const double correction = steps < 1   ? 1.5 - 0.5 * steps
                            : steps > 2 ? std::max(0.5, 1.5 - 0.25 * steps)
                                        : 1.0;
  const double wanted = std::ceil(steady * correction - 1e-9);
  return std::clamp<int64_t>(static_cast<int64_t>(std::min(wanted, 1e9)), 1,
                             cap);
}

}  // namespace cox
