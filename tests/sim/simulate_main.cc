// cox-simulate: runs the production cores through schedules of faults in
// virtual time.

#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "lib/base/process.h"
#include "tests/sim/campaign.h"

namespace cox::sim {
namespace {

// From here on a fault that never met a state means lost coverage.
constexpr int64_t kFullCampaign = 100000;

struct Arguments {
  std::string seeds;
  uint64_t seed = 0;
  bool one = false;
  bool trace = false;
  int threads = 1;
  std::string without;
};

int RunOne(const Arguments& a, const Rules& rules) {
  SimOptions options;
  options.seed = a.seed;
  options.rules = rules;
  options.trace = true;
  SimResult result = Simulate(options);
  std::printf("%s", Describe(options, result).c_str());
  if (!result.ok && !a.trace) {
    const SimOptions smallest = Shrink(options);
    std::printf("shrunk:\n%s", Describe(smallest, Simulate(smallest)).c_str());
  }
  return result.ok ? kExitDone : kExitCheckFailed;
}

int RunMany(const Arguments& a, const Rules& rules) {
  const std::vector<std::string> ends = absl::StrSplit(a.seeds, "..");
  CampaignOptions options;
  if (ends.size() != 2 || !absl::SimpleAtoi(ends[0], &options.first) ||
      !absl::SimpleAtoi(ends[1], &options.last) ||
      options.last < options.first) {
    std::fprintf(stderr, "--seeds: expected A..B, found '%s'\n",
                 a.seeds.c_str());
    return kExitUsage;
  }
  options.threads = a.threads;
  options.rules = rules;
  const CampaignResult result = RunCampaign(options);
  std::printf("%s", result.coverage.Table().c_str());
  std::printf(
      "%lld schedules, %lld events, %.0f s of virtual time in %.1f s: "
      "%.0f schedules/s\n",
      static_cast<long long>(result.schedules),
      static_cast<long long>(result.events), result.virtual_s, result.wall_s,
      static_cast<double>(result.schedules) / result.wall_s);
  if (result.failed.has_value()) {
    Arguments one = a;
    one.seed = *result.failed;
    one.trace = false;
    return RunOne(one, rules);
  }
  if (const std::string missing = result.coverage.Missing();
      !missing.empty() && result.schedules >= kFullCampaign) {
    std::printf("never met:\n%s", missing.c_str());
    return kExitCheckFailed;
  }
  std::printf("no violation, no stuck run\n");
  return kExitDone;
}

int Main(int argc, char** argv) {
  Arguments a;
  CLI::App app{"The production cores under faults, in virtual time",
               "simulate"};
  CLI::Option* seeds = app.add_option("--seeds", a.seeds, "A..B, B included");
  CLI::Option* seed = app.add_option("--seed", a.seed, "one schedule");
  seeds->excludes(seed);
  app.add_flag("--trace", a.trace,
               "with --seed: as it is, without looking for a smaller one");
  app.add_option("-j,--threads", a.threads)->check(CLI::Range(1, 256));
  app.add_option("--without", a.without,
                 "number of a rule to switch off (docs/durability.md)");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitDone : kExitUsage;
  }
  Rules rules;
  bool known = a.without.empty();
  for (const Mutation& mutation : Mutations()) {
    if (a.without == mutation.rule) {
      mutation.apply(rules);
      known = true;
    }
  }
  if (!known || (seeds->count() == 0 && seed->count() == 0)) {
    std::fprintf(stderr, "%s\n",
                 known ? "simulate: --seed N or --seeds A..B"
                       : "--without: no such rule");
    return kExitUsage;
  }
  return seed->count() > 0 ? RunOne(a, rules) : RunMany(a, rules);
}

}  // namespace
}  // namespace cox::sim

int main(int argc, char** argv) { return cox::sim::Main(argc, argv); }
