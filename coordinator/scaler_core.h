#ifndef COX_COORDINATOR_SCALER_CORE_H_
#define COX_COORDINATOR_SCALER_CORE_H_

// How many actors a run can use now. Pure; the signal is the learners' work
// that lies ready, in seconds:
//
//   buffered_s = ready units / units per step * learner seconds per step
//
// With an overlapped schedule the number of actors is held where that lies
// between one and two steps. In `sync`, `collect` and `eval` everybody waits
// for rollouts, so that every open unit is worth an actor.

#include <cstdint>

namespace cox {

struct LoadView {
  bool needs_actors = false;  // the stage has units, and nobody paused it
  bool overlapped = false;    // fixed_lag or streaming ppo
  int32_t units_per_step = 0;
  int64_t open_units = 0;   // pending and leased
  int64_t ready_units = 0;  // submitted, in no committed step
  // Units that staleness lets be generated at the same time, at most.
  int64_t max_in_flight = 0;
  int64_t live_actors = 0;
  double unit_s = 0;     // median time of a unit on an actor; 0 = unknown
  double learner_s = 0;  // learners' work in the last step; 0 = unknown
};

// Seconds of learner work that lie ready; 0 when the rate is unknown.
double BufferedSeconds(const LoadView& load);

// 0 when none is needed, else 1 to max_in_flight.
int64_t WantedActors(const LoadView& load);

}  // namespace cox

#endif  // COX_COORDINATOR_SCALER_CORE_H_
