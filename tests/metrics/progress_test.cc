#include "lib/metrics/progress.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/metrics/registry.h"

namespace cox {
namespace {

ProgressState PpoState() {
  ProgressState state;
  state.stage = "ppo";
  state.step = 24;
  state.first_step = 4;
  state.total_steps = 40;
  state.elapsed = absl::Seconds(100);
  state.metrics = {{"objective/scores", 0.53125},
                   {"objective/kl", 3.2},
                   {"rollout/length", 21.25}};
  return state;
}

TEST(FormatProgressTest, DrawsABarForATerminal) {
  // 20 steps took 100 s, 16 remain: 80 s.
  EXPECT_EQ(FormatProgress(PpoState(), {true, true, 100}),
            "ppo ▕████████████░░░░░░░░▏ 24/40 60% eta 1m20s"
            "  score 0.5312  kl 3.2  len 21.25");
  EXPECT_EQ(FormatProgress(PpoState(), {true, false, 60}),
            "ppo [############--------] 24/40 60% eta 1m20s  score 0.5312");
}

TEST(FormatProgressTest, NeverExceedsTheColumns) {
  for (int columns = 1; columns < 120; ++columns) {
    const std::string line = FormatProgress(PpoState(), {true, true, columns});
    const auto width = std::count_if(line.begin(), line.end(),
                                     [](char c) { return (c & 0xc0) != 0x80; });
    EXPECT_LE(width, columns);
  }
}

TEST(FormatProgressTest, WritesLogfmtWithoutATerminal) {
  EXPECT_EQ(FormatProgress(PpoState(), {false}),
            "stage=ppo step=24 total=40 eta_s=80 objective/scores=0.5312 "
            "objective/kl=3.2 rollout/length=21.25");
}

TEST(FormatProgressTest, HandlesUnknownTotalsAndNoProgress) {
  ProgressState state = PpoState();
  state.total_steps = 0;
  state.metrics.clear();
  EXPECT_EQ(FormatProgress(state, {}), "ppo step 24 1m40s");
  state = PpoState();
  state.step = state.first_step;
  state.metrics = {{"objective/kl", std::nan("")}};
  EXPECT_EQ(FormatProgress(state, {true, false, 80}),
            "ppo [##------------------] 4/40 10% eta ?  kl NaN");
  EXPECT_EQ(FormatProgress(state, {false}),
            "stage=ppo step=4 total=40 objective/kl=NaN");
}

TEST(EstimateRemainingTest, IsZeroAtTheEnd) {
  ProgressState state = PpoState();
  state.step = 40;
  EXPECT_EQ(EstimateRemaining(state), absl::ZeroDuration());
}

TEST(ShortDurationTest, HasTwoParts) {
  EXPECT_EQ(ShortDuration(absl::Seconds(8.4)), "8s");
  EXPECT_EQ(ShortDuration(absl::Seconds(92)), "1m32s");
  EXPECT_EQ(ShortDuration(absl::Minutes(62)), "1h02m");
  EXPECT_EQ(ShortDuration(absl::Hours(49)), "2d01h");
  EXPECT_EQ(ShortDuration(absl::InfiniteDuration()), "?");
}

TEST(KeyMetricsTest, AreRegistered) {
  for (const char* stage :
       {"pretrain", "sft", "collect", "rm", "ppo", "eval"}) {
    for (const auto& [name, label] : KeyMetrics(stage)) {
      const MetricInfo* metric = FindMetric(name);
      ASSERT_NE(metric, nullptr) << name;
      EXPECT_EQ(metric->name, name);
    }
  }
}

}  // namespace
}  // namespace cox
