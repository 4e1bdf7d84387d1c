#ifndef COX_CLI_SIMULATED_ACTORS_CLIENT_H_
#define COX_CLI_SIMULATED_ACTORS_CLIENT_H_

// Many actors in one process, without models: each has its own session and
// connection, leases a unit, waits for the time that generating it would take,
// submits valid trajectories, and does all else that an actor does towards the
// coordinator (heartbeats, the long poll for its assignment, renewals).
//
// Asynchronous, so that a thousand of them need no more threads than gRPC's
// own.

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/clock.h"
#include "lib/base/ids.h"
#include "lib/base/status.h"
#include "lib/base/sync.h"

namespace cox {

struct SimulatedActorOptions {
  std::string address;  // host:port of the coordinator
  std::string run_id;
  int count = 1;
  absl::Duration service_time;  // from lease to submission
  absl::Duration heartbeat = absl::Seconds(2);
  int64_t response_tokens = 24;  // of every sample
  int64_t vocab_size = 1000;
  uint64_t seed = 1;
};

class SimulatedActors {
 public:
  explicit SimulatedActors(SimulatedActorOptions options);
  ~SimulatedActors();  // Stop()
  SimulatedActors(const SimulatedActors&) = delete;
  SimulatedActors& operator=(const SimulatedActors&) = delete;

  // Registers all; UNAVAILABLE when not all are in after `limit`.
  absl::Status Register(absl::Duration limit);
  // Starts to lease, spread over one service time. Callable once.
  void Start();
  // What was acknowledged from now on counts.
  void BeginWindow();
  void EndWindow();
  // No more leases; waits for what is under way.
  void Stop();

  struct Result {
    int64_t units = 0;  // acknowledged in the window
    int64_t samples = 0;
    double samples_s = 0;          // see below
    std::vector<double> ack_us;    // SubmitUnit, start to answer
    std::vector<double> lease_us;  // LeaseUnits, start to answer
    int64_t failed_calls = 0;      // of every kind, over the whole life
    std::string first_error;
  };
  // samples_s is the sum over actors of the rate between their first and last
  // acknowledgement in the window: a count over the window would be off by up
  // to one unit per actor, which is all for an actor that does two of them.
  Result TakeResult();
  // Every unit acknowledged so far and the SHA-256 of its payload.
  std::map<UnitId, std::string> Acknowledged() const;
  int64_t failed_calls() const;

 private:
  class Actor;
  struct Shared;
  std::shared_ptr<Shared> shared_;
  std::vector<std::unique_ptr<Actor>> actors_;
  bool stopped_ = false;
};

}  // namespace cox

#endif  // COX_CLI_SIMULATED_ACTORS_CLIENT_H_
