#ifndef COX_TESTS_SIM_CAMPAIGN_H_
#define COX_TESTS_SIM_CAMPAIGN_H_

// Many seeds, on several threads; and one seed, shrunk and told.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/world.h"

namespace cox::sim {

struct CampaignOptions {
  uint64_t first = 0;
  uint64_t last = 0;  // included
  int threads = 1;
  Rules rules;
  bool stop_at_first = true;
};

struct CampaignResult {
  int64_t schedules = 0;
  std::optional<uint64_t> failed;  // lowest failing seed that was met
  std::string violation;
  Coverage coverage;
  int64_t events = 0;
  int64_t failed_units = 0;      // given up
  int64_t removed_segments = 0;  // by retention
  double virtual_s = 0;
  double wall_s = 0;
};

// Also checks that all seeds of a deterministic variant end with the same
// weights.
CampaignResult RunCampaign(const CampaignOptions& options);

// Leaves faults out one by one as long as the schedule still fails. Returns
// the options of the smallest one found, with `trace`.
SimOptions Shrink(SimOptions options);
// Variant, faults, violation, last 50 events.
std::string Describe(const SimOptions& options, const SimResult& result);

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_CAMPAIGN_H_
