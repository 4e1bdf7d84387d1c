#ifndef COX_TESTS_COORDINATOR_CORE_SIMULATION_H_
#define COX_TESTS_COORDINATOR_CORE_SIMULATION_H_

// A run in virtual time: the real core on the memory ledger, with actors, a
// reward process and a learner group that die, repeat, delay and reorder.
// What a fake computes is a hash of its inputs, so that "the same weights" can
// be checked by comparing strings.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/core.h"
#include "coordinator/memory_ledger.h"
#include "lib/base/hash.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"

namespace cox {

struct SimulationOptions {
  uint64_t seed = 0;
  SchedulePlan schedule;
  int64_t steps = 6;
  double fault_rate = 0.1;  // of kills, duplicates, delays per turn
  int actors = 3;
  int32_t world_size = 2;
};

class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options)
      : options_(options), rng_(options.seed, "simulation") {}

  // Faults for `noisy_turns`, then a healed world. OK when the run finished in
  // bounded virtual time and no invariant broke on the way.
  absl::Status Run(int noisy_turns);

  const LedgerState& ledger() const { return disk_.state; }

 private:
  struct Actor {
    std::string session;
    std::vector<LeaseGrant> leases;
  };
  struct Rank {
    std::string session;
    int64_t generation = 0;
    int32_t stage = -1;
    int64_t step = 0;       // done in memory
    std::string weights;
    bool stopped = false;   // a zombie that wakes up later
  };

  bool Fault() { return rng_.NextUniform() < fault_rate_; }
  std::string NewSession() {
    return absl::StrCat("session-", ++sessions_made_);
  }
  CoreCaller Caller(const std::string& session, const std::string& role,
                    const std::string& name, int64_t generation = 0) {
    return {session, role, name, core_->epoch().value, generation};
  }
  absl::Status Restart();
  absl::Status Settle();  // commits rows, carries out effects
  absl::Status ActorTurn(size_t index);
  absl::Status RewardTurn();
  absl::Status LearnerTurn();
  absl::Status Train(const AssignmentData& assignment);
  absl::Status PublishAll(const AssignmentData& assignment);
  absl::Status Publish(const std::string& model, PolicyVersion version,
                       const std::string& hash);
  bool EnsureRegistered(const std::string& session, const std::string& role,
                        const std::string& name, int32_t rank,
                        int64_t generation);

  const SimulationOptions options_;
  CounterRng rng_;
  double fault_rate_ = 0;
  MemoryDisk disk_;
  std::unique_ptr<LedgerStore> ledger_;
  std::unique_ptr<CoordinatorCore> core_;
  MonoTime now_{1};
  int64_t sessions_made_ = 0;
  std::map<std::string, int64_t> registered_epoch_;
  std::vector<Actor> actors_;
  std::string reward_session_;
  std::vector<Rank> ranks_;
  std::vector<SubmitEvent> delayed_;
  std::map<UnitId, std::string> first_result_;  // acknowledged
};

}  // namespace cox

#endif  // COX_TESTS_COORDINATOR_CORE_SIMULATION_H_
