#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/sim/campaign.h"

namespace cox::sim {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

// The campaign of every build; `tools/simulate` runs a hundred times as many.
TEST(Simulation, TenThousandSchedulesKeepTheInvariantsAndFinish) {
  CampaignOptions options;
  options.last = 9999;
  options.threads = 2;
  const CampaignResult result = RunCampaign(options);
  ASSERT_FALSE(result.failed.has_value())
      << "tools/simulate --seed " << *result.failed << ": " << result.violation;
  EXPECT_EQ(result.schedules, 10000);
  // A fault that no longer reaches a state would be a silent loss.
  EXPECT_THAT(result.coverage.Missing(), IsEmpty());
  EXPECT_GT(result.failed_units, 1000);
  EXPECT_GT(result.removed_segments, 1000);
}

TEST(Simulation, ASeedIsReplayedExactly) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SimOptions options;
    options.seed = seed;
    const SimResult plain = Simulate(options);
    options.trace = true;
    const SimResult first = Simulate(options);
    const SimResult second = Simulate(options);
    EXPECT_EQ(first.last_events, second.last_events);
    EXPECT_EQ(plain.events, first.events);  // tracing changes nothing
    EXPECT_EQ(plain.virtual_time, first.virtual_time);
    EXPECT_EQ(plain.final_weights, first.final_weights);
  }
}

TEST(Simulation, AFailingScheduleIsShrunkAndTold) {
  CampaignOptions campaign;
  campaign.last = 9999;
  campaign.rules.core.payload_before_row = false;
  const CampaignResult found = RunCampaign(campaign);
  ASSERT_TRUE(found.failed.has_value());
  SimOptions options;
  options.seed = *found.failed;
  options.rules = campaign.rules;
  const SimOptions smallest = Shrink(options);
  const SimResult result = Simulate(smallest);
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.last_events, ::testing::Not(IsEmpty()));
  EXPECT_LE(result.last_events.size(), 50u);
  // Without any of the faults that are left it does not fail.
  for (size_t i = 0; i < smallest.left_out.size(); ++i) {
    if (!smallest.left_out[i]) {
      SimOptions less = smallest;
      less.left_out[i] = true;
      EXPECT_TRUE(Simulate(less).ok) << i;
    }
  }
  EXPECT_THAT(Describe(smallest, result), ::testing::HasSubstr("VIOLATION"));
}

TEST(Simulation, WithoutFaultsEveryVariantEndsAsTheOracleSays) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SimOptions options;
    options.seed = seed;
    options.left_out.assign(16, true);
    const SimResult result = Simulate(options);
    ASSERT_TRUE(result.ok) << seed << ": " << result.violation;
    EXPECT_LT(result.virtual_time, 26 * kSecond);
  }
}

}  // namespace
}  // namespace cox::sim
