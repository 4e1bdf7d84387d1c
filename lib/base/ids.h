#ifndef COX_LIB_BASE_IDS_H_
#define COX_LIB_BASE_IDS_H_

// Identities of a run. Strong types, because a bare integer "version" has been
// the bug of every RL system. Steps count 1, 2, ... within a stage; version s
// is the weights after step s, version 0 those the stage starts from.

#include <compare>
#include <cstdint>
#include <string>

namespace cox {

// A counter with a name of its own. Tag makes the types distinct.
template <typename Tag>
struct StrongInt {
  int64_t value = 0;
  auto operator<=>(const StrongInt&) const = default;
};

using Epoch = StrongInt<struct EpochTag>;  // coordinator incarnation
// Incarnation of a learner group.
using Generation = StrongInt<struct GenerationTag>;

// Weights after `step` committed steps of stage number `stage` (index into the
// run's stage list, from 0). `model` is "policy", "critic" or "reward".
struct PolicyVersion {
  int32_t stage = 0;
  int64_t step = 0;
  auto operator<=>(const PolicyVersion&) const = default;
  std::string ToString() const;  // "s4v12"
};

// A fixed list of prompts x samples, decoded as one deterministic batch.
struct UnitId {
  int32_t stage = 0;
  int64_t step = 0;   // the step that trains it (streaming: the issuing round)
  int32_t index = 0;  // place in the step, from 0
  auto operator<=>(const UnitId&) const = default;
  std::string ToString() const;  // "s4.12.3"
};

struct TrajectoryId {
  UnitId unit;
  int32_t prompt = 0;  // place in the unit, from 0
  int32_t sample = 0;  // place among the prompt's samples, from 0
  auto operator<=>(const TrajectoryId&) const = default;
  std::string ToString() const;  // "s4.12.3/5.0"
};

// The right to submit one unit.
struct LeaseId {
  UnitId unit;
  Epoch epoch;
  int64_t attempt = 0;
  auto operator<=>(const LeaseId&) const = default;
};

}  // namespace cox

#endif  // COX_LIB_BASE_IDS_H_
