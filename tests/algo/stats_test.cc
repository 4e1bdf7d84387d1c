#include "lib/algo/stats.h"

#include "tests/algo/numeric.h"

namespace cox {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

const Doubles kAdvantages = {.812153125, .7706875, 1.01125, .675, .5};
const MaskVector kOnes5(5, 1);

Whitened<double> WhitenLocal(const Doubles& x, const MaskVector& mask,
                             const WhitenOptions& options) {
  LocalReducer local;
  absl::StatusOr<Whitened<double>> result =
      Whiten<double>(x, mask, options, local);
  EXPECT_OK(result);
  return result.value_or(Whitened<double>());
}

TEST(WhitenTest, MatchesTheReference) {
  const auto w = WhitenLocal(kAdvantages, kOnes5, {});
  EXPECT_NEAR(w.mean, .753818, kPrinted);
  EXPECT_NEAR(w.var, .028119, kPrinted);
  EXPECT_THAT(w.out, IsNear({.347880, .100600, 1.535192, -.470031, -1.513642}));
}

TEST(WhitenTest, MatchesTheReferenceWithOneDegreeLess) {
  const auto w = WhitenLocal(kAdvantages, kOnes5, {.ddof = 1});
  EXPECT_NEAR(w.var, .035149, kPrinted);
  EXPECT_THAT(w.out, IsNear({.311154, .089980, 1.373118, -.420409, -1.353843}));
}

TEST(WhitenTest, MatchesTheReferenceWithoutMeanShift) {
  const auto w = WhitenLocal(kAdvantages, kOnes5, {.shift_mean = false});
  EXPECT_THAT(w.out, IsNear({1.101698, .854418, 2.289011, .283787, -.759824}));
}

TEST(WhitenTest, NothingMaskedInIsZeroNotNan) {
  const auto w = WhitenLocal({kNan, kInf}, {0, 0}, {});
  EXPECT_EQ(w.mean, 0);
  EXPECT_EQ(w.var, 0);
  EXPECT_THAT(w.out, Each(0.0));
}

TEST(WhitenTest, EpsStandsUnderTheRoot) {
  // Mean 0, variance 1: 1/sqrt(1 + 3).
  const auto w = WhitenLocal({1, -1}, {1, 1}, {.eps = 3});
  EXPECT_THAT(w.out, IsNear({.5, -.5}));
}

TEST(WhitenTest, ConstantInputIsZeroEvenWithoutEps) {
  const auto w = WhitenLocal({.1, .1, .1}, {1, 1, 1}, {.eps = 0});
  EXPECT_THAT(w.out, Each(0.0));
}

TEST(WhitenTest, FewerElementsThanDdofHaveNoVariance) {
  const auto w = WhitenLocal({3, kNan}, {1, 0}, {.ddof = 1});
  EXPECT_EQ(w.var, 0);
  EXPECT_THAT(w.out, Each(0.0));
}

TEST(MaskedMeanTest, IgnoresPoison) {
  const Doubles x = {1, kNan, 4};
  const MaskVector mask = {1, 0, 1};
  ASSERT_OK_AND_ASSIGN(const MeanCount m, MaskedMean<double>(x, mask));
  EXPECT_NEAR(m.mean, 2.5, kExact);
  EXPECT_EQ(m.count, 2);
}

TEST(MomentsTest, MergeEqualsAddingAll) {
  CounterRng rng(1, "moments");
  const Doubles x = Normals(rng, 20, 100);
  Moments all;
  Moments left;
  Moments right;
  for (size_t i = 0; i < x.size(); ++i) {
    all.Add(x[i]);
    (i < 7 ? left : right).Add(x[i]);
  }
  left.Merge(right);
  left.Merge(Moments());
  EXPECT_NEAR(left.mean, all.mean, 1e-11);
  EXPECT_NEAR(left.Variance(1), all.Variance(1), 1e-11);
}

// §1.1 and §6: sequence advantages (+1, −.5), ε .2/.28.
const Doubles kLosses = {-1.105171, -.740818, -1.28, -1,
                         .4,        .745912,  kNan,  kInf};
const MaskVector kMask = {1, 1, 1, 1, 1, 1, 0, 0};

double AggregateValue(LossAgg agg) {
  LocalReducer local;
  absl::StatusOr<LossNormalizer> normalizer =
      MakeNormalizer({2, 4}, kMask, /*t_max=*/4, local);
  EXPECT_OK(normalizer);
  absl::StatusOr<Aggregated> result =
      Aggregate<double>({2, 4}, kLosses, kMask, agg, *normalizer);
  EXPECT_OK(result);
  return result->value;
}

TEST(AggregateTest, MatchesTheReference) {
  EXPECT_NEAR(AggregateValue(LossAgg::kTokenMean), -.496679, kPrinted);
  EXPECT_NEAR(AggregateValue(LossAgg::kSeqMeanTokenMean), -.229271, kPrinted);
  EXPECT_NEAR(AggregateValue(LossAgg::kSeqMeanTokenSum), -1.490038, kPrinted);
  EXPECT_NEAR(AggregateValue(LossAgg::kConst), -.372510, kPrinted);
}

TEST(AggregateTest, RowWithoutMaskIsNoSequence) {
  const Doubles loss = {3, kNan, kNan, kNan};
  const MaskVector mask = {1, 0, 0, 0};
  ASSERT_OK_AND_ASSIGN(const LossNormalizer n, CountNormalizer({2, 2}, mask));
  EXPECT_EQ(n.sequences, 1);
  ASSERT_OK_AND_ASSIGN(
      const Aggregated result,
      Aggregate<double>({2, 2}, loss, mask, LossAgg::kSeqMeanTokenMean, n));
  EXPECT_NEAR(result.value, 3, kExact);
}

TEST(AggregateTest, EmptyMinibatchIsZero) {
  const MaskVector mask(4, 0);
  for (const LossAgg agg : {LossAgg::kTokenMean, LossAgg::kSeqMeanTokenMean,
                            LossAgg::kSeqMeanTokenSum}) {
    ASSERT_OK_AND_ASSIGN(
        const Aggregated result,
        Aggregate<double>({2, 2}, Doubles(4, kNan), mask, agg, {}));
    EXPECT_EQ(result.value, 0);
    EXPECT_THAT(result.weight, Each(0.0));
  }
}

TEST(AggregateTest, ConstWantsTMax) {
  EXPECT_THAT(TokenWeights({2, 4}, kMask, LossAgg::kConst, {6, 2, 0}),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("t_max")));
}

TEST(AggregateTest, LocalCountsBelowTheMaskAreRefused) {
  EXPECT_THAT(TokenWeights({2, 4}, kMask, LossAgg::kTokenMean, {5, 2, 0}),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("normalizer")));
}

TEST(BootstrapTest, IntervalCoversTheMeanAndRepeats) {
  CounterRng rng(2, "bootstrap-data");
  const Doubles x = Normals(rng, 200, 1.0);
  ASSERT_OK_AND_ASSIGN(const Interval a, BootstrapMean(x, {.seed = 3}));
  ASSERT_OK_AND_ASSIGN(const Interval b, BootstrapMean(x, {.seed = 3}));
  EXPECT_LT(a.low, a.mean);
  EXPECT_LT(a.mean, a.high);
  // Normal theory: ±1.96/√200 = ±.139.
  EXPECT_NEAR(a.high - a.low, .277, .05);
  EXPECT_EQ(a.low, b.low);
  EXPECT_EQ(a.high, b.high);
}

TEST(BootstrapTest, ConstantSampleHasNoWidth) {
  ASSERT_OK_AND_ASSIGN(const Interval i, BootstrapMean(Doubles{2, 2, 2}, {}));
  EXPECT_EQ(i.low, 2);
  EXPECT_EQ(i.high, 2);
  EXPECT_THAT(BootstrapMean({}, {}),
              testing::StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(DistinctNTest, CountsUniqueOverTotal) {
  const std::vector<std::vector<int64_t>> sequences = {{1, 2, 1, 2}, {1, 2}};
  // Bigrams 12, 21, 12 | 12: two distinct of four.
  ASSERT_OK_AND_ASSIGN(const double two, DistinctN(sequences, 2));
  EXPECT_NEAR(two, .5, kExact);
  ASSERT_OK_AND_ASSIGN(const double five, DistinctN(sequences, 5));
  EXPECT_EQ(five, 0);
}

}  // namespace
}  // namespace cox
