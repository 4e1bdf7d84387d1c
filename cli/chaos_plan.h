#ifndef COX_CLI_CHAOS_PLAN_H_
#define COX_CLI_CHAOS_PLAN_H_

// Which faults `cox chaos` delivers, in which order. Pure: the same options
// give the same schedule.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/status.h"

namespace cox {

enum class FaultKind {
  kKill,     // SIGKILL
  kStop,     // SIGSTOP, later SIGCONT
  kSlow,     // the actors' link to the coordinator is slow for a while
  kCut,      // that link swallows one direction for a while
  kCorrupt,  // a bit of weights or of a result flips on the way
  kEnospc,   // a write fails: the disk is full
};
std::string_view FaultKindName(FaultKind kind);

struct Fault {
  FaultKind kind = FaultKind::kKill;
  std::string role;   // "actor", "reward", "learner", "coordinator", "all"
  int32_t index = 0;  // which process of the role
  // Not "": the fault is armed there, at the `hit`-th passage, instead of
  // being delivered at an instant.
  std::string failpoint;
  int64_t hit = 1;
  // After the fault before this one: when it was delivered, or when the run
  // had committed a step again.
  absl::Duration delay;
  bool after_recovery = true;
  absl::Duration length;  // kStop, kSlow, kCut
};
std::string FaultText(const Fault& fault);  // for people

struct ChaosPlanOptions {
  int kills = 20;
  uint64_t seed = 1;
  std::vector<std::string> roles;  // of ChaosRoles(); empty = all of them
  // Kinds besides kKill get a tenth of `kills` each, at least one. Without
  // kKill each gets `kills`.
  std::vector<FaultKind> kinds = {FaultKind::kKill};
  std::map<std::string, int32_t> replicas;  // role -> processes
};

const std::vector<std::string>& ChaosRoles();
// "kill,stop" -> kinds; "slow" gives kSlow and kCut. INVALID_ARGUMENT names
// what is not known.
absl::StatusOr<std::vector<FaultKind>> ParseFaultKinds(std::string_view text);
absl::StatusOr<std::vector<std::string>> ParseChaosRoles(std::string_view text);

// Roles take turns, so that each gets its share; their order within a turn,
// instants and places are drawn.
std::vector<Fault> PlanFaults(const ChaosPlanOptions& options);

}  // namespace cox

#endif  // COX_CLI_CHAOS_PLAN_H_
