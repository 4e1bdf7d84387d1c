#include "gtest/gtest.h"
#include "tests/coordinator/core_simulation.h"

namespace cox {
namespace {

std::string FinalWeights(const LedgerState& ledger) {
  std::string text;
  for (const StepRow& row : ledger.steps) {
    absl::StrAppend(&text, row.stage, ".", row.step, "=", row.weight_hash,
                    "\n");
  }
  return text;
}

struct Case {
  const char* name;
  SchedulePlan schedule;
};

class CoreProperty : public ::testing::TestWithParam<Case> {};

// Invariants 1, 2, 3, 5, 6, 7, 10, 11 hold after every event, the run ends in
// bounded time once faults stop, and in deterministic modes the weights are
// those of the undisturbed run.
TEST_P(CoreProperty, SurvivesKillsDuplicatesReorderingsAndRestarts) {
  SimulationOptions calm;
  calm.schedule = GetParam().schedule;
  calm.fault_rate = 0;
  Simulation undisturbed(calm);
  ASSERT_OK(undisturbed.Run(0));
  const std::string expected = FinalWeights(undisturbed.ledger());
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    SimulationOptions options = calm;
    options.seed = seed;
    options.fault_rate = 0.02 + 0.02 * static_cast<double>(seed % 10);
    Simulation simulation(options);
    ASSERT_OK(simulation.Run(/*noisy_turns=*/400)) << "seed " << seed;
    if (options.schedule.mode != ScheduleMode::kStreaming) {
      ASSERT_EQ(FinalWeights(simulation.ledger()), expected)
          << "seed " << seed;
    }
    // Every unit of streaming is in at most one batch.
    std::set<UnitId> used;
    for (const BatchRow& batch : simulation.ledger().batches) {
      for (const UnitId& unit : batch.units) {
        ASSERT_TRUE(used.insert(unit).second) << unit.ToString();
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Modes, CoreProperty,
    ::testing::Values(Case{"Sync", {ScheduleMode::kSync, 0, 0}},
                      Case{"FixedLag", {ScheduleMode::kFixedLag, 1, 0}},
                      Case{"FixedLag3", {ScheduleMode::kFixedLag, 3, 0}},
                      Case{"Streaming", {ScheduleMode::kStreaming, 0, 2}}),
    [](const auto& c) { return std::string(c.param.name); });

}  // namespace
}  // namespace cox
