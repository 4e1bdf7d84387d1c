#ifndef COX_CLI_SELFTEST_COMMAND_H_
#define COX_CLI_SELFTEST_COMMAND_H_

#include <string>
#include <vector>

namespace cox {

struct SelfTestOptions {
  bool quick = false;                   // the bandit alone
  bool keep = false;                    // leave the run directories behind
  int jobs = 2;                         // runs at a time
  std::vector<std::string> algorithms;  // empty = all
};

// `cox selftest`: trains on tasks whose optimum is known in closed form, by
// ordinary `cox run`s with real coordinator, actors, reward service and
// learners, and compares the exported policy, enumerated exactly, with the
// optimum. Prints a table. Returns 0; 1 if an algorithm misses; 2 if a part
// of the program is missing.
int SelfTest(const SelfTestOptions& options);

}  // namespace cox

#endif  // COX_CLI_SELFTEST_COMMAND_H_
