#ifndef COX_CLI_CHAOS_COMMAND_H_
#define COX_CLI_CHAOS_COMMAND_H_

#include <cstdint>
#include <string>
#include <vector>

namespace cox {

struct ChaosOptions {
  std::string file;                    // run.yaml
  std::vector<std::string> overrides;  // "a.b.c=value"
  int kills = 20;
  uint64_t seed = 1;
  std::string roles = "actor,reward,learner,coordinator,all";
  std::string faults = "kill";
  std::string mode;   // schedule.mode; "" = as the file says
  std::string dir;    // "" = runs/<name>-chaos
  std::string json;   // file for the figures; "" = none
  bool keep = false;  // run directories of runs that were equal
  double patience_s = 120;
};

// `cox chaos`: the undisturbed run (or an earlier one of the same
// configuration), then runs under faults until all were delivered; afterwards
// the ledger's verification and the comparison with the undisturbed run.
// Prints one table. 0: equal; 1: something differs, hangs or does not verify;
// 2: usage; 42: interrupted.
int Chaos(const ChaosOptions& options);

}  // namespace cox

#endif  // COX_CLI_CHAOS_COMMAND_H_
