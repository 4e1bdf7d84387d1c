#include "lib/algo/sampling.h"

#include "lib/algo/staleness.h"
#include "tests/algo/numeric.h"

namespace cox {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Doubles kLogits = {2, 1, .5, -1, -1.5};

TokenSampler Process(const Doubles& logits, const SamplingOptions& options,
                     const std::vector<int32_t>& context = {},
                     int64_t generated = 0) {
  TokenSampler sampler;
  EXPECT_OK(options.Validate());
  EXPECT_OK(sampler.Process<double>(logits, options, context, generated));
  return sampler;
}

std::vector<int64_t> KeptIds(const TokenSampler& sampler) {
  std::vector<int64_t> ids;
  for (int64_t id = 0; id < sampler.vocab(); ++id) {
    if (sampler.Kept(id)) ids.push_back(id);
  }
  return ids;
}

TEST(TokenSamplerTest, TruncationsMatchTheReference) {
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = .7, .top_k = 3},
        SamplingOptions{.temperature = .7, .top_p = .9},
        SamplingOptions{.temperature = .7, .min_p = .1}}) {
    const TokenSampler sampler = Process(kLogits, options);
    EXPECT_THAT(KeptIds(sampler), ElementsAre(0, 1, 2));
    EXPECT_NEAR(sampler.Logprob(0), -.305254, kPrinted);
    EXPECT_NEAR(sampler.Logprob(1), -1.733826, kPrinted);
    EXPECT_NEAR(sampler.Logprob(2), -2.448112, kPrinted);
    EXPECT_EQ(sampler.Logprob(3), -kInf);
  }
}

TEST(TokenSamplerTest, WholePipelineMatchesTheReference) {
  const SamplingOptions options{.temperature = .7,
                                .top_k = 4,
                                .top_p = .95,
                                .min_p = .05,
                                .repetition_penalty = 1.2};
  // A repeated id is penalised once.
  const TokenSampler sampler = Process(kLogits, options, {0, 3, 0, 3});
  EXPECT_THAT(KeptIds(sampler), ElementsAre(0, 1, 2));
  EXPECT_NEAR(sampler.Logprob(0), -.454063, kPrinted);
  EXPECT_NEAR(sampler.Logprob(1), -1.406444, kPrinted);
  EXPECT_NEAR(sampler.Logprob(2), -2.120729, kPrinted);
}

TEST(TokenSamplerTest, TiesWithTheKthSurvive) {
  const TokenSampler sampler = Process({1, 1, 0, 1}, {.top_k = 2});
  EXPECT_THAT(KeptIds(sampler), ElementsAre(0, 1, 3));
}

TEST(TokenSamplerTest, TopPRemovesTheHigherIdAmongEquals) {
  // Four times .25: removing while cumulative ≤ .5 leaves two.
  const TokenSampler sampler = Process({1, 1, 1, 1}, {.top_p = .5});
  EXPECT_THAT(KeptIds(sampler), ElementsAre(0, 1));
}

TEST(TokenSamplerTest, TinyTopPKeepsOneToken) {
  const TokenSampler sampler = Process(kLogits, {.top_p = 1e-9});
  EXPECT_THAT(KeptIds(sampler), ElementsAre(0));
  EXPECT_EQ(sampler.Logprob(0), 0);
}

TEST(TokenSamplerTest, DrawsMatchTheReference) {
  const TokenSampler sampler = Process(kLogits, {.temperature = .7});
  const double u[] = {.1, .75, .9, .99, .999};
  for (int64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(sampler.Draw(u[i]).token, i);
  }
  EXPECT_NEAR(sampler.Draw(.75).logprob, -1.748821, kPrinted);
}

TEST(TokenSamplerTest, TheFirstTokenWhoseCdfExceedsTheUniform) {
  // Two halves: the CDF is exactly .5 and 1.
  const TokenSampler even = Process({1, 1}, {});
  EXPECT_EQ(even.Draw(std::nextafter(.5, 0)).token, 0);
  EXPECT_EQ(even.Draw(.5).token, 1);
  // At u = 0 a removed token is not drawn.
  SamplingOptions options;
  options.forbid_ids = {0};
  EXPECT_EQ(Process(kLogits, options).Draw(0).token, 1);
}

TEST(TokenSamplerTest, LargestUniformGivesTheLastKeptToken) {
  const TokenSampler sampler = Process(kLogits, {.top_k = 2});
  EXPECT_EQ(sampler.Draw(std::nextafter(1.0, 0.0)).token, 1);
}

TEST(TokenSamplerTest, ZeroTemperatureTakesTheLowestArgmax) {
  const TokenSampler sampler = Process({0, 3, 3, 1}, {.temperature = 0});
  EXPECT_EQ(sampler.Draw(.99).token, 1);
  EXPECT_EQ(sampler.Draw(.99).logprob, 0);
  EXPECT_EQ(sampler.Logprob(2), -kInf);
}

TEST(TokenSamplerTest, ForbiddenIdsAndEarlyEosAreRemoved) {
  SamplingOptions options;
  options.forbid_ids = {1};
  options.eos_ids = {0};
  options.min_new_tokens = 2;
  EXPECT_THAT(KeptIds(Process(kLogits, options, {}, 1)), ElementsAre(2, 3, 4));
  EXPECT_THAT(KeptIds(Process(kLogits, options, {}, 2)),
              ElementsAre(0, 2, 3, 4));
}

TEST(TokenSamplerTest, PenaltyMovesBothSignsTowardsLess) {
  const TokenSampler sampler =
      Process({2, -2}, {.repetition_penalty = 2}, {0, 1});
  // (1, −4): log-softmax of the first is −log(1 + e^−5).
  EXPECT_NEAR(sampler.Logprob(0), -std::log1p(std::exp(-5)), kExact);
}

TEST(TokenSamplerTest, TinyTemperatureIsFinite) {
  const TokenSampler sampler = Process({1e6, 1e6, 0}, {.temperature = 1e-300});
  EXPECT_NEAR(sampler.Logprob(0), -std::log(2), kExact);
  EXPECT_LT(sampler.Logprob(2), -1e300);
}

TEST(TokenSamplerTest, ReuseDoesNotRememberTheLastRow) {
  TokenSampler sampler;
  const std::vector<int32_t> context = {0};
  const SamplingOptions penalty{.repetition_penalty = 5};
  ASSERT_OK(sampler.Process<double>(kLogits, penalty, context, 0));
  ASSERT_OK(sampler.Process<double>(kLogits, penalty, {}, 0));
  EXPECT_NEAR(sampler.Logprob(0), -.513419, kPrinted);
  ASSERT_OK(sampler.Process<double>(Doubles{0, 0}, {}, {}, 0));
  EXPECT_EQ(sampler.vocab(), 2);
  EXPECT_NEAR(sampler.Logprob(0), -std::log(2), kExact);
}

TEST(TokenSamplerTest, FrequenciesFollowTheDistribution) {
  const TokenSampler sampler = Process(kLogits, {});
  Doubles frequency(5, 0.0);
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    frequency[sampler.Draw(TokenUniform(1, 2, 3, i)).token] += 1.0 / kDraws;
  }
  for (int64_t id = 0; id < 5; ++id) {
    EXPECT_NEAR(frequency[id], std::exp(sampler.Logprob(id)), .015);
  }
}

TEST(TokenSamplerTest, BadInputIsNamed) {
  TokenSampler sampler;
  const auto process = [&](const Doubles& z, const SamplingOptions& options) {
    return sampler.Process<double>(z, options, {}, 0);
  };
  const auto names = [](const char* what) {
    return testing::StatusIs(absl::StatusCode::kInvalidArgument,
                             HasSubstr(what));
  };
  EXPECT_THAT(process({1, kNan}, {}), names("logits"));
  EXPECT_THAT(process({1, kInf}, {}), names("logits"));
  EXPECT_THAT(process({-kInf, -kInf}, {}), names("logits"));
  SamplingOptions forbid;
  forbid.forbid_ids = {0, 1};
  EXPECT_THAT(process({1, 1}, forbid), names("logits"));
  forbid.forbid_ids = {2};
  EXPECT_THAT(process({1, 1}, forbid), names("forbid_ids"));
  EXPECT_THAT(SamplingOptions{.temperature = -1}.Validate(),
              names("temperature"));
  EXPECT_THAT(SamplingOptions{.top_p = 0}.Validate(), names("top_p"));
  EXPECT_THAT(SamplingOptions{.min_p = 1.1}.Validate(), names("min_p"));
  EXPECT_THAT(SamplingOptions{.repetition_penalty = 0}.Validate(),
              names("repetition_penalty"));
}

// The pruning inside top-p must not change what a full sort would keep.
TEST(TokenSamplerTest, TopPAgreesWithAFullSort) {
  CounterRng rng(7, "top-p");
  for (int trial = 0; trial < 50; ++trial) {
    const Doubles z = Normals(rng, 60, 0, 3);
    const double p = .05 + .94 * rng.NextUniform();
    const TokenSampler all = Process(z, {});
    const TokenSampler cut = Process(z, {.top_p = p});
    std::vector<int64_t> order(60);
    for (int64_t i = 0; i < 60; ++i) order[i] = i;
    std::sort(order.begin(), order.end(),
              [&](int64_t a, int64_t b) { return z[a] < z[b]; });
    double cumulative = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      cumulative += std::exp(all.Logprob(order[i]));
      const bool keep = cumulative > 1 - p || i + 1 == order.size();
      EXPECT_EQ(cut.Kept(order[i]), keep) << "trial " << trial;
    }
  }
}

TEST(StalenessTest, CapacityMatchesTheReference) {
  const auto capacity = [](int64_t v, int64_t accepted, int64_t running) {
    return StalenessCapacity({.eta_max = 2,
                              .batch = 8,
                              .version = v,
                              .accepted = accepted,
                              .running = running});
  };
  EXPECT_THAT(capacity(0, 0, 0), testing::IsOkAndHolds(24));
  EXPECT_THAT(capacity(3, 20, 8), testing::IsOkAndHolds(20));
  EXPECT_THAT(capacity(3, 32, 8), testing::IsOkAndHolds(8));
  EXPECT_THAT(capacity(0, 100, 8), testing::IsOkAndHolds(0));
}

TEST(StalenessTest, ConcurrencyLimits) {
  EXPECT_THAT(
      StalenessCapacity(
          {.eta_max = 2, .batch = 8, .max_concurrent = 10, .running = 4}),
      testing::IsOkAndHolds(6));
  // "No bound" must not overflow.
  EXPECT_THAT(StalenessCapacity({.eta_max = std::numeric_limits<int64_t>::max(),
                                 .batch = 8,
                                 .max_concurrent = 5}),
              testing::IsOkAndHolds(5));
}

TEST(StalenessTest, OldestTokenDecides) {
  const std::vector<int64_t> versions = {5, 3, 6};
  EXPECT_THAT(SampleStaleness(6, versions), testing::IsOkAndHolds(3));
  EXPECT_THAT(SampleStaleness(5, versions),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("token_versions")));
}

}  // namespace
}  // namespace cox
