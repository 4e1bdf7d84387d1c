#include "lib/metrics/prometheus.h"

#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kOwn[] =
    "# HELP cox_metrics_dropped_series Updates of series beyond the limit.\n"
    "# TYPE cox_metrics_dropped_series counter\n"
    "cox_metrics_dropped_series 0\n";

TEST(PrometheusRegistryTest, WritesTheTextFormat) {
  PrometheusRegistry registry;
  registry.Describe("cox_units_total", "Units\nof \\ work");
  registry.Describe("never_set", "nothing");
  registry.Add("cox_units_total", 2, {{"role", "actor"}});
  registry.Add("cox_units_total", 0.5, {{"role", "actor"}});
  registry.Add("cox_units_total", 1, {{"a", "q\"\\\n"}, {"role", "x"}});
  registry.Set("cox_version", 7);
  registry.Set("cox_version", 8);
  EXPECT_EQ(registry.Text(),
            absl::StrCat(kOwn,
                         "# HELP cox_units_total Units\\nof \\\\ work\n"
                         "# TYPE cox_units_total counter\n"
                         "cox_units_total{a=\"q\\\"\\\\\\n\",role=\"x\"} 1\n"
                         "cox_units_total{role=\"actor\"} 2.5\n"
                         "# TYPE cox_version gauge\n"
                         "cox_version 8\n"));
}

TEST(PrometheusRegistryTest, IgnoresWhatCountersCannotDo) {
  PrometheusRegistry registry;
  registry.Add("c", 1);
  registry.Add("c", -1);
  registry.Add("c", std::numeric_limits<double>::quiet_NaN());
  registry.Set("c", 9);  // another type
  EXPECT_THAT(registry.Text(), HasSubstr("\nc 1\n"));
}

TEST(PrometheusRegistryTest, TakesAStepOfMetrics) {
  PrometheusRegistry registry;
  registry.SetMetrics("ppo", {{"objective/kl", 1.5},
                              {"x", std::numeric_limits<double>::infinity()},
                              {"y", std::numeric_limits<double>::quiet_NaN()}});
  const std::string text = registry.Text();
  EXPECT_THAT(text, HasSubstr("cox_objective_kl{stage=\"ppo\"} 1.5\n"));
  EXPECT_THAT(text, HasSubstr("cox_x{stage=\"ppo\"} +Inf\n"));
  EXPECT_THAT(text, HasSubstr("cox_y{stage=\"ppo\"} NaN\n"));
}

TEST(PrometheusRegistryTest, BoundsTheNumberOfSeries) {
  PrometheusRegistry registry;
  for (int i = 0; i < PrometheusRegistry::kMaxSeries + 5; ++i) {
    registry.Set("g", i, {{"i", absl::StrCat(i)}});
  }
  const std::string text = registry.Text();
  EXPECT_THAT(text, HasSubstr("cox_metrics_dropped_series 5\n"));
  EXPECT_THAT(text, HasSubstr("g{i=\"9999\"}"));
  EXPECT_THAT(text, Not(HasSubstr("g{i=\"10000\"}")));
}

TEST(PrometheusRegistryTest, CountsFromManyThreads) {
  PrometheusRegistry registry;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&registry] {
      for (int i = 0; i < 1000; ++i) registry.Add("n", 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(registry.Text(), HasSubstr("\nn 4000\n"));
}

TEST(PrometheusNameTest, MakesNamesLegal) {
  EXPECT_EQ(PrometheusName("timing_s/wait batch"), "timing_s_wait_batch");
  EXPECT_EQ(PrometheusName("9a"), "_9a");
  EXPECT_EQ(PrometheusName(""), "_");
}

}  // namespace
}  // namespace cox
