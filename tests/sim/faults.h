#ifndef COX_TESTS_SIM_FAULTS_H_
#define COX_TESTS_SIM_FAULTS_H_

// What goes wrong in a schedule: a list drawn from the seed, so that a failing
// one can be shrunk by leaving faults out one by one.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "lib/base/rng.h"
#include "tests/sim/event_loop.h"

namespace cox::sim {

enum class FaultKind {
  // Messages, for a time, to and from one process or all.
  kLoss,
  kDuplicate,
  kDelay,
  kReorder,
  kPartition,        // both directions
  kPartitionOneWay,  // requests arrive, replies do not, or the other way round
  // Processes
  kKillActor,
  kKillReward,
  kKillLearner,
  kKillCoordinator,
  kStopActor,          // SIGSTOP, later SIGCONT
  kStopLearner,        // becomes a zombie of an older generation
  kStopCoordinator,    // no other starts; wakes up after a while
  kSecondCoordinator,  // another takes over while the old one still runs
  kKillAtOperation,    // in the middle of a durable operation
  kLyingActor,         // wrong weight hash, another result for a unit
  // The machine
  kPowerLoss,
  kPowerLossAtOperation,
  kDiskFull,
  kSyncError,
  kWallClockJump,
  kCount,
};
constexpr size_t kFaultKinds = static_cast<size_t>(FaultKind::kCount);
const char* FaultName(FaultKind kind);

struct Fault {
  FaultKind kind = FaultKind::kLoss;
  Ns at = 0;
  Ns duration = 0;
  int target = 0;         // which of the processes it can hit
  double rate = 0;        // of messages
  int64_t operation = 0;  // k-th from `at` on
  std::string ToString() const;
};

// At most ten faults in the first seconds of a run.
std::vector<Fault> DrawFaults(CounterRng& rng);

// Where a run stands when a fault hits it.
enum class SimState {
  kText,   // sft, rm
  kUnits,  // collect, eval
  kPpo,
  kReplay,   // the learner computes committed steps again
  kNoGroup,  // no learner group
  kCount,
};
constexpr size_t kSimStates = static_cast<size_t>(SimState::kCount);
const char* StateName(SimState state);

// How often each fault hit each state.
struct Coverage {
  std::array<std::array<int64_t, kSimStates>, kFaultKinds> hits{};
  int64_t& at(FaultKind kind, SimState state) {
    return hits[static_cast<size_t>(kind)][static_cast<size_t>(state)];
  }
  void Add(const Coverage& other);
  // Pairs that never met, as text; empty = full coverage.
  std::string Missing() const;
  std::string Table() const;
};

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_FAULTS_H_
