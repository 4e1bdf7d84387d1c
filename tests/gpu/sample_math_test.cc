// The device's sampling, run by threads of the host, against lib/algo.

#include "lib/gpu/sample_math.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "lib/algo/sampling.h"
#include "lib/base/rng.h"
#include "tests/gpu/host_block.h"

namespace cox::gpu {
namespace {

Sampled SampleOn(int threads, const std::vector<float>& logits,
                 SampleArgs args) {
  args.vocab = static_cast<int64_t>(logits.size());
  std::vector<Sampled> out(static_cast<size_t>(threads));
  RunBlock(threads, [&](const HostBlock& block) {
    out[static_cast<size_t>(block.rank())] = Sample(block, logits.data(), args);
  });
  for (const Sampled& other : out) {
    EXPECT_EQ(other.token, out[0].token);  // all threads agree
    EXPECT_EQ(other.logprob, out[0].logprob);
  }
  return out[0];
}

SampledToken Expected(const std::vector<float>& logits,
                      const SampleArgs& args) {
  SamplingOptions options;
  options.temperature = args.temperature;
  options.top_k = args.top_k;
  options.top_p = args.top_p;
  options.min_p = args.min_p;
  TokenSampler sampler;
  EXPECT_TRUE(
      sampler.Process<float>(logits, options, {}, /*generated=*/0).ok());
  return sampler.Draw(args.uniform);
}

TEST(UniformTest, HasTheBitsOfTheCounterGenerator) {
  CounterRng rng(7, "keys");
  for (int i = 0; i < 1000; ++i) {
    const uint64_t seed = rng.NextUint64(), prompt = rng.NextUint64();
    const uint64_t sample = rng.NextUint64(), position = rng.NextUint64();
    ASSERT_EQ(Uniform(seed, prompt, sample, position),
              TokenUniform(seed, prompt, sample, position));
    ASSERT_EQ(Uniform(seed, 3, 0, static_cast<uint64_t>(i)),
              TokenUniform(seed, 3, 0, static_cast<uint64_t>(i)));
  }
}

TEST(FloatKeyTest, OrdersFloats) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> ascending = {-inf,   -3e38f, -1.0f, -1e-45f, 0.0f,
                                        1e-45f, 2.0f,   3e38f, inf};
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT_LT(FloatKey(ascending[i - 1]), FloatKey(ascending[i]));
  }
  EXPECT_EQ(FloatKey(-0.0f), FloatKey(0.0f));
  EXPECT_EQ(FloatKey(-inf), kRemovedKey);
}

struct Case {
  SampleArgs args;
  double grid;  // logits are multiples of it: ties
};

TEST(SampleTest, DrawsTheTokensOfTheHostSampler) {
  CounterRng rng(11, "logits");
  std::vector<Case> cases;
  for (double grid : {0.0, 0.5}) {
    for (int64_t top_k : {0, 1, 5, 1000}) {
      for (double top_p : {1.0, 0.9, 0.3}) {
        for (double min_p : {0.0, 0.1}) {
          cases.push_back({{.temperature = 0.7,
                            .top_k = top_k,
                            .top_p = top_p,
                            .min_p = min_p},
                           grid});
        }
      }
    }
  }
  for (const Case& test : cases) {
    for (int threads : {1, 3}) {
      for (int row = 0; row < 4; ++row) {
        std::vector<float> logits(1 + rng.NextBelow(70));
        for (float& z : logits) {
          double x = 3.0 * rng.NextNormal();
          if (test.grid > 0) x = test.grid * std::round(x / test.grid);
          z = static_cast<float>(x);
        }
        if (logits.size() > 3) {
          logits[1] = -std::numeric_limits<float>::infinity();  // forbidden
        }
        SampleArgs args = test.args;
        args.uniform = row == 3 ? 1 - 0x1.0p-53 : rng.NextUniform();
        const SampledToken expected = Expected(logits, args);
        const Sampled found = SampleOn(threads, logits, args);
        ASSERT_TRUE(found.valid);
        ASSERT_EQ(found.token, expected.token)
            << "top_k " << args.top_k << " top_p " << args.top_p << " min_p "
            << args.min_p << " grid " << test.grid << " of " << logits.size();
        ASSERT_NEAR(found.logprob, expected.logprob, 1e-12);
      }
    }
  }
}

TEST(SampleTest, TemperatureZeroTakesTheFirstOfTheLargest) {
  const std::vector<float> logits = {1.0f, 4.0f, -2.0f, 4.0f};
  for (int threads : {1, 2, 4}) {
    const Sampled found =
        SampleOn(threads, logits, {.temperature = 0, .uniform = 0.9});
    EXPECT_EQ(found.token, 1);
    EXPECT_EQ(found.logprob, 0.0);
  }
}

TEST(SampleTest, RefusesRowsWithoutAnswer) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_FALSE(SampleOn(2, {1.0f, NAN, 0.0f}, {}).valid);
  EXPECT_FALSE(SampleOn(2, {1.0f, inf, 0.0f}, {}).valid);
  EXPECT_FALSE(SampleOn(2, {-inf, -inf}, {}).valid);
}

}  // namespace
}  // namespace cox::gpu
