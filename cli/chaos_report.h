#ifndef COX_CLI_CHAOS_REPORT_H_
#define COX_CLI_CHAOS_REPORT_H_

// The figures of a campaign, as a table and as JSON. Pure.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/chaos_run.h"

namespace cox {

struct ChaosFigures {
  std::string mode;
  uint64_t seed = 0;
  std::vector<DeliveredFault> faults;
  int runs = 0;         // under faults
  int equal = 0;        // of them
  int starts = 0;       // of `cox run`
  int unexplained = 0;  // ends with 42 that no fault explains
  int64_t steps = 0;    // committed, over all runs
  int64_t steps_redone = 0;
  int64_t units = 0;
  double calm_s = 0;  // wall time of the undisturbed run; 0 = reused
  double wall_s = 0;
  std::string ledger;      // "verified", "not available"
  std::string comparison;  // "hashes of ...", "replay ..."
  std::vector<std::string> problems;
};

// Nearest-rank percentile in [0, 1]; REQUIRES values.
double Percentile(std::vector<double> values, double rank);

std::string ChaosTable(const ChaosFigures& figures);
std::string ChaosJson(const ChaosFigures& figures);

}  // namespace cox

#endif  // COX_CLI_CHAOS_REPORT_H_
