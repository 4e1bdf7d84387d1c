#include "lib/metrics/registry.h"

#include <set>
#include <string>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using ::testing::HasSubstr;

TEST(MetricRegistryTest, NamesAndAliasesAreUniqueAndComplete) {
  std::set<std::string> names;
  for (const MetricInfo& metric : AllMetrics()) {
    EXPECT_TRUE(names.insert(std::string(metric.name)).second) << metric.name;
    EXPECT_FALSE(metric.formula.empty()) << metric.name;
    EXPECT_TRUE(metric.source == "coxswain" || metric.source.starts_with("§"))
        << metric.name;
  }
  for (const MetricInfo& metric : AllMetrics()) {
    for (const std::string& alias : std::vector<std::string>(absl::StrSplit(
             std::string(metric.aliases), ' ', absl::SkipEmpty()))) {
      EXPECT_TRUE(alias.starts_with("trl:") || alias.starts_with("openrlhf:") ||
                  alias.starts_with("verl:"))
          << alias;
      // Each alias leads back to its own metric.
      EXPECT_EQ(FindMetric(alias), &metric) << alias;
      EXPECT_EQ(FindMetric(alias.substr(alias.find(':') + 1)), &metric)
          << alias;
    }
  }
}

TEST(MetricRegistryTest, HoldsTheNamesOfTheAlgorithmReference) {
  for (const char* name : {"objective/kl",
                           "objective/scores",
                           "objective/score_total",
                           "objective/entropy",
                           "policy/approxkl",
                           "policy/clipfrac",
                           "policy/ratio",
                           "policy/entropy",
                           "val/error",
                           "val/clipfrac",
                           "val/explained_var",
                           "rollout/stop_frac",
                           "rollout/length",
                           "offpolicy/w_mean",
                           "offpolicy/w_max",
                           "offpolicy/ess",
                           "async/staleness_max",
                           "async/dropped",
                           "mismatch/k3",
                           "loss/policy",
                           "loss/value",
                           "loss/ptx",
                           "loss/lm",
                           "loss/rm",
                           "lr",
                           "lr_value",
                           "episode",
                           "eps",
                           "tokens_s",
                           "kl_coef",
                           "objective/gold",
                           "rm/accuracy",
                           "rm/heldout_accuracy",
                           "rm/human_accuracy",
                           "text/heldout_nll",
                           "text/heldout_ppl",
                           "timing_s/wait_batch",
                           "timing_s/score",
                           "timing_s/train",
                           "timing_s/publish",
                           "timing_s/checkpoint",
                           "timing_s/step",
                           "grad_norm/policy",
                           "grad_norm/value",
                           "policy/first_clipfrac",
                           "policy/first_approxkl",
                           "policy/updates",
                           "rollout/excluded",
                           "mismatch/max_abs",
                           "text/tokens",
                           "rm/heldout_margin",
                           "rm/human_margin",
                           "rm/reward_gain",
                           "rm/reward_bias",
                           "collect/prompts",
                           "collect/unscored",
                           "eval/reference/gold",
                           "eval/best_of_n/kl",
                           "eval/policy/reward",
                           "eval/policy/length"}) {
    const MetricInfo* metric = FindMetric(name);
    ASSERT_NE(metric, nullptr) << name;
    EXPECT_EQ(metric->name, name);
  }
}

TEST(MetricRegistryTest, FindsAliases) {
  EXPECT_EQ(FindMetric("policy/approxkl_avg")->name, "policy/approxkl");
  EXPECT_EQ(FindMetric("trl:policy/approxkl_avg")->name, "policy/approxkl");
  EXPECT_EQ(FindMetric("objective/rlhf_reward")->name, "objective/score_total");
  EXPECT_EQ(FindMetric("actor/pg_clipfrac")->name, "policy/clipfrac");
  EXPECT_EQ(FindMetric("nonsense"), nullptr);
  EXPECT_EQ(FindMetric(""), nullptr);
}

TEST(MetricRegistryTest, ExplainsForATerminal) {
  EXPECT_EQ(*ExplainMetric("policy/approxkl"),
            "policy/approxkl\n"
            "  = masked mean of 0.5 * (policy - old log-prob)^2\n"
            "  unit: nats per token\n"
            "  source: docs/algorithms.md §9\n"
            "  elsewhere: trl:policy/approxkl_avg openrlhf:ppo_kl "
            "verl:actor/ppo_kl\n");
  EXPECT_THAT(*ExplainMetric("timing_s/step"), HasSubstr("the system itself"));
}

TEST(MetricRegistryTest, SuggestsNearNames) {
  const auto unknown = ExplainMetric("ppo/clipfrac");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(unknown.status().message(),
            "unknown metric 'ppo/clipfrac' (did you mean policy/clipfrac, "
            "policy/first_clipfrac, val/clipfrac?)");
  EXPECT_EQ(ExplainMetric("zzz").status().message(), "unknown metric 'zzz'");
}

}  // namespace
}  // namespace cox
