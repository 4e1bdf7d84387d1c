// A million draws of the production sampler, by the production counter RNG,
// against probabilities that are computed here in the plainest way.

#include <numeric>
#include <set>

#include "lib/algo/sampling.h"
#include "tests/algo/numeric.h"

namespace cox {
namespace {

constexpr int64_t kDraws = 1000000;

struct Setting {
  std::string name;
  SamplingOptions options;
  std::vector<int32_t> context = {};
  int64_t generated = 0;
};

// Twelve tokens, spread wide enough that every setting removes some and the
// rarest survivor still gets dozens of draws.
const Doubles kRow = {1.5,  0.2, -0.7, 2.1, -1.9, 0.9,
                      -0.1, 1.5, -2.5, 0.4, -1.2, 2.0};

// docs/algorithms.md §10, one step after the other; 0 = removed.
Doubles Expected(const Setting& setting) {
  const SamplingOptions& o = setting.options;
  Doubles z = kRow;
  const std::set<int32_t> seen(setting.context.begin(), setting.context.end());
  for (const int32_t id : seen) {
    z[id] =
        z[id] < 0 ? z[id] * o.repetition_penalty : z[id] / o.repetition_penalty;
  }
  for (const int64_t id : o.forbid_ids) z[id] = -kInf;
  if (setting.generated < o.min_new_tokens) {
    for (const int64_t id : o.eos_ids) z[id] = -kInf;
  }
  for (double& x : z) x /= o.temperature;
  const size_t n = z.size();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&z](size_t a, size_t b) { return z[a] > z[b]; });
  if (o.top_k > 0) {
    const double threshold = z[order[o.top_k - 1]];
    for (double& x : z) x = x < threshold ? -kInf : x;
  }
  const auto softmax = [&z] {
    Doubles p(z.size());
    double total = 0;
    for (size_t i = 0; i < z.size(); ++i) total += p[i] = std::exp(z[i]);
    for (double& x : p) x /= total;
    return p;
  };
  Doubles p = softmax();
  double mass = 0;
  for (const size_t id : order) {
    if (mass >= o.top_p) z[id] = -kInf;
    mass += p[id];
  }
  p = softmax();
  const double best = *std::max_element(p.begin(), p.end());
  for (size_t i = 0; i < n; ++i) {
    if (p[i] < o.min_p * best) z[i] = -kInf;
  }
  return softmax();
}

std::vector<Setting> Settings() {
  std::vector<Setting> out = {
      {"plain", {}},
      {"cold", {.temperature = .5}},
      {"hot", {.temperature = 1.8}},
      {"top_k", {.top_k = 5}},
      {"top_p", {.top_p = .8}},
      {"min_p", {.min_p = .15}},
      {"penalty", {.repetition_penalty = 1.4}, {3, 7, 8, 3, 3}},
      {"all",
       {.temperature = .7,
        .top_k = 9,
        .top_p = .95,
        .min_p = .02,
        .repetition_penalty = 1.2},
       {0, 4, 11}},
  };
  Setting& forbid = out.emplace_back(Setting{"forbid", {}});
  forbid.options.forbid_ids = {3, 8};
  Setting& early = out.emplace_back(Setting{"min_new_tokens", {}});
  early.options.eos_ids = {11, 0};
  early.options.min_new_tokens = 4;
  early.generated = 3;
  return out;
}

// P(χ²_k > 1e-4 quantile) by Wilson and Hilferty: (χ²/k)^⅓ is nearly normal.
bool Plausible(double chi, double k) {
  const double z =
      (std::cbrt(chi / k) - (1 - 2 / (9 * k))) / std::sqrt(2 / (9 * k));
  return z < 3.719;  // one-sided p > 1e-4
}

TEST(SamplingDistributionTest, AMillionDrawsPassChiSquared) {
  Doubles reference = {0.3, -1, 0.8, 1.1, -0.4, 0, 2, -0.6, 0.5, 1, -2, 0.7};
  double total = 0;
  for (const double z : reference) total += std::exp(z);
  for (double& z : reference) z -= std::log(total);
  uint64_t seed = 100;
  for (const Setting& setting : Settings()) {
    ++seed;
    const Doubles expected = Expected(setting);
    TokenSampler sampler;
    ASSERT_OK(setting.options.Validate());
    ASSERT_OK(sampler.Process<double>(kRow, setting.options, setting.context,
                                      setting.generated));
    std::vector<int64_t> counts(kRow.size());
    double ratio = 0;
    double ratio_squares = 0;
    for (int64_t i = 0; i < kDraws; ++i) {
      // Many prompts, samples and positions, as in a run.
      const SampledToken drawn = sampler.Draw(TokenUniform(
          seed, static_cast<uint64_t>(i / 1000),
          static_cast<uint64_t>(i / 20 % 50), static_cast<uint64_t>(i % 20)));
      ++counts[drawn.token];
      const double r = std::exp(reference[drawn.token] - drawn.logprob);
      ratio += r;
      ratio_squares += r * r;
    }
    double chi = 0;
    double kept_mass = 0;
    int kept = 0;
    for (size_t id = 0; id < kRow.size(); ++id) {
      if (expected[id] == 0) {
        EXPECT_EQ(counts[id], 0) << setting.name << ": token " << id;
        continue;
      }
      ++kept;
      kept_mass += std::exp(reference[id]);
      const double mean = expected[id] * static_cast<double>(kDraws);
      chi += std::pow(static_cast<double>(counts[id]) - mean, 2) / mean;
      EXPECT_NEAR(sampler.Logprob(static_cast<int64_t>(id)),
                  std::log(expected[id]), 1e-12)
          << setting.name << ": token " << id;
    }
    EXPECT_TRUE(Plausible(chi, kept - 1))
        << setting.name << ": chi-squared " << chi << ", " << kept << " tokens";
    // Σ p_beh exp(ℓ_ref − ℓ_beh) is the reference's mass on what is kept: 1
    // without truncation.
    const double n = static_cast<double>(kDraws);
    ratio /= n;
    const double error =
        std::sqrt((ratio_squares / n - ratio * ratio) / n) + 1e-12;
    EXPECT_NEAR(ratio, kept_mass, 4 * error) << setting.name;
    if (kept == static_cast<int>(kRow.size())) {
      EXPECT_NEAR(kept_mass, 1, 1e-12);
    }
  }
}

// The raw log-prob minus ℓ_beh is the log of the kept mass, draw by draw.
TEST(SamplingDistributionTest, TruncationReportsTheKeptMass) {
  const SamplingOptions options{.top_k = 5};
  TokenSampler full;
  TokenSampler cut;
  ASSERT_OK(full.Process<double>(kRow, {}, {}, 0));
  ASSERT_OK(cut.Process<double>(kRow, options, {}, 0));
  double kept_mass = 0;
  for (int64_t id = 0; id < cut.vocab(); ++id) {
    if (cut.Kept(id)) kept_mass += std::exp(full.Logprob(id));
  }
  EXPECT_LT(kept_mass, .95);
  for (int i = 0; i < 100; ++i) {
    const SampledToken drawn = cut.Draw(TokenUniform(5, 1, 2, i));
    EXPECT_NEAR(std::exp(full.Logprob(drawn.token) - drawn.logprob), kept_mass,
                1e-12);
  }
}

// The 1e-4 quantile of χ²_11 is 37.4.
TEST(SamplingDistributionTest, TheThresholdIsThatQuantile) {
  EXPECT_TRUE(Plausible(11, 11));
  EXPECT_TRUE(Plausible(36.5, 11));
  EXPECT_FALSE(Plausible(38.5, 11));
}

}  // namespace
}  // namespace cox
