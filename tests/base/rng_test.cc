#include "lib/base/rng.h"

#include <array>
#include <cmath>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using ::testing::ElementsAre;

// Known answers of the Random123 distribution, philox4x32 with 10 rounds.
TEST(PhiloxTest, MatchesKnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_THAT(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                         {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(TokenUniformTest, DependsOnEachArgumentAndNothingElse) {
  const double base = TokenUniform(1, 2, 3, 4);
  EXPECT_EQ(base, TokenUniform(1, 2, 3, 4));
  EXPECT_NE(base, TokenUniform(2, 2, 3, 4));
  EXPECT_NE(base, TokenUniform(1, 3, 3, 4));
  EXPECT_NE(base, TokenUniform(1, 2, 4, 4));
  EXPECT_NE(base, TokenUniform(1, 2, 3, 5));
  // High halves count too.
  EXPECT_NE(base, TokenUniform(1, 2 + (uint64_t{1} << 32), 3, 4));
  EXPECT_NE(base, TokenUniform(1, 2, 3, 4 + (uint64_t{1} << 32)));
}

TEST(TokenUniformTest, IsUniformOnUnitInterval) {
  constexpr int kDraws = 20000;
  double sum = 0;
  double sum_squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double u = TokenUniform(7, i % 50, i / 50 % 4, i / 200);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    sum_squares += u * u;
  }
  // Standard error of the mean: sqrt(1/12/20000) = 0.002.
  EXPECT_NEAR(sum / kDraws, 0.5, 0.01);
  EXPECT_NEAR(sum_squares / kDraws, 1.0 / 3, 0.01);
}

TEST(CounterRngTest, ElementIsAFunctionOfSeedStreamAndPosition) {
  CounterRng a(5, "shuffle");
  std::vector<uint64_t> values;
  for (int i = 0; i < 10; ++i) values.push_back(a.NextUint64());
  CounterRng b(5, "shuffle");
  b.Seek(7);
  EXPECT_EQ(b.NextUint64(), values[7]);
  EXPECT_NE(CounterRng(5, "noise").NextUint64(), values[0]);
  EXPECT_NE(CounterRng(6, "shuffle").NextUint64(), values[0]);
}

TEST(CounterRngTest, NormalHasUnitMoments) {
  CounterRng rng(1, "normal");
  constexpr int kDraws = 20000;
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = rng.NextNormal();
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0.0, 0.03);
  EXPECT_NEAR(squares / kDraws, 1.0, 0.05);
}

TEST(CounterRngTest, NextBelowStaysBelowAndReachesAll) {
  CounterRng rng(3, "below");
  std::array<int, 7> counts = {};
  for (int i = 0; i < 7000; ++i) {
    const uint64_t value = rng.NextBelow(7);
    ASSERT_LT(value, 7u);
    ++counts[value];
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);
  EXPECT_EQ(rng.NextBelow(1), 0u);
  const uint64_t huge = (uint64_t{1} << 63) + 1;
  for (int i = 0; i < 50; ++i) EXPECT_LT(rng.NextBelow(huge), huge);
}

TEST(PermutationTest, IsAPermutationThatRepeats) {
  const std::vector<int64_t> order = Permutation(100, 9, "epoch-0");
  EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), 100u);
  EXPECT_EQ(order, Permutation(100, 9, "epoch-0"));
  EXPECT_NE(order, Permutation(100, 9, "epoch-1"));
  EXPECT_TRUE(Permutation(0, 9, "x").empty());
  EXPECT_THAT(Permutation(1, 9, "x"), ElementsAre(0));
}

// Recorded runs depend on these bits: a change here breaks every replay.
TEST(CounterRngTest, BitsAreFixedForEver) {
  CounterRng rng(42, "golden");
  const std::vector<uint64_t> values = {rng.NextUint64(), rng.NextUint64()};
  EXPECT_THAT(values, ElementsAre(0x8c18f4b183eaa62b, 0xb6dec7b0c1af21cb));
  EXPECT_EQ(TokenUniform(1, 2, 3, 4), 0x1.07ac71920e427p-1);
}

}  // namespace
}  // namespace cox
