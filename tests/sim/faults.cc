#include "tests/sim/faults.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace cox::sim {

const char* FaultName(FaultKind kind) {
  constexpr const char* kNames[] = {"loss",
                                    "duplicate",
                                    "delay",
                                    "reorder",
                                    "partition",
                                    "partition-one-way",
                                    "kill-actor",
                                    "kill-reward",
                                    "kill-learner",
                                    "kill-coordinator",
                                    "stop-actor",
                                    "stop-learner",
                                    "stop-coordinator",
                                    "second-coordinator",
                                    "kill-at-operation",
                                    "lying-actor",
                                    "power-loss",
                                    "power-loss-at-operation",
                                    "disk-full",
                                    "sync-error",
                                    "wall-clock-jump"};
  static_assert(std::size(kNames) == kFaultKinds);
  return kNames[static_cast<size_t>(kind)];
}

const char* StateName(SimState state) {
  constexpr const char* kNames[] = {"text", "units", "ppo", "replay",
                                    "no-group"};
  static_assert(std::size(kNames) == kSimStates);
  return kNames[static_cast<size_t>(state)];
}

std::string Fault::ToString() const {
  return absl::StrFormat("%s at %.2f s for %.2f s, target %d, rate %.2f, k %d",
                         FaultName(kind), static_cast<double>(at) / kSecond,
                         static_cast<double>(duration) / kSecond, target, rate,
                         operation);
}

std::vector<Fault> DrawFaults(CounterRng& rng) {
  std::vector<Fault> faults;
  const uint64_t count = rng.NextBelow(9) + (rng.NextBelow(4) == 0 ? 2 : 0);
  for (uint64_t i = 0; i < count; ++i) {
    Fault fault;
    fault.kind = static_cast<FaultKind>(rng.NextBelow(kFaultKinds));
    // Most runs take four seconds when nothing disturbs them.
    fault.at = kSecond + static_cast<Ns>(rng.NextUniform() * 6 * kSecond);
    fault.duration = static_cast<Ns>(rng.NextUniform() * 3 * kSecond);
    if (rng.NextBelow(4) == 0) {
      fault.duration *= 6;  // longer than a lease, a silence, a collective
    }
    fault.target = static_cast<int>(rng.NextBelow(64));
    fault.rate = 0.05 + 0.4 * rng.NextUniform();
    fault.operation = 1 + static_cast<int64_t>(rng.NextBelow(24));
    faults.push_back(fault);
  }
  return faults;
}

void Coverage::Add(const Coverage& other) {
  for (size_t k = 0; k < kFaultKinds; ++k) {
    for (size_t s = 0; s < kSimStates; ++s) {
      hits[k][s] += other.hits[k][s];
    }
  }
}

std::string Coverage::Missing() const {
  std::string text;
  for (size_t k = 0; k < kFaultKinds; ++k) {
    for (size_t s = 0; s < kSimStates; ++s) {
      if (hits[k][s] == 0) {
        absl::StrAppend(&text, FaultName(static_cast<FaultKind>(k)), " x ",
                        StateName(static_cast<SimState>(s)), "\n");
      }
    }
  }
  return text;
}

std::string Coverage::Table() const {
  std::string text = absl::StrFormat("%-24s", "fault x state");
  for (size_t s = 0; s < kSimStates; ++s) {
    absl::StrAppendFormat(&text, " %10s", StateName(static_cast<SimState>(s)));
  }
  absl::StrAppend(&text, "\n");
  for (size_t k = 0; k < kFaultKinds; ++k) {
    absl::StrAppendFormat(&text, "%-24s", FaultName(static_cast<FaultKind>(k)));
    for (size_t s = 0; s < kSimStates; ++s) {
      absl::StrAppendFormat(&text, " %10d", hits[k][s]);
    }
    absl::StrAppend(&text, "\n");
  }
  return text;
}

}  // namespace cox::sim
