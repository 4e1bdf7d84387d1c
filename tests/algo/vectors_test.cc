// Intermediate numbers that docs/algorithms.md prints beside its vectors; the
// vectors themselves stand in the test of their function.

#include "lib/algo/advantage.h"
#include "lib/algo/policy_loss.h"
#include "lib/algo/rm_loss.h"
#include "lib/algo/rollout.h"
#include "lib/algo/sampling.h"
#include "lib/algo/stats.h"
#include "lib/algo/value_loss.h"
#include "tests/algo/numeric.h"

namespace cox {
namespace {

const Doubles kOld = {-1, -2, -.5, -1.5, -.7, -1.2};
const Doubles kPolicy = {-.9, -2.3, -.1, -1.5, -1, -.8};
const Doubles kAdvantages = {.5, -1, 2, -.3, -.8, 1.5};
const Doubles kBehaviour = {-1.2, -1.9, -.6, -2.3, -.7, -1};

// The given tokens as one row, the denominator their number.
PolicyLossResult<double> LossOfRow(const Doubles& policy, const Doubles& old,
                                   const Doubles& advantages,
                                   const PolicyLossOptions& options = {},
                                   const Doubles& behaviour = {}) {
  const Shape2 shape{1, static_cast<int64_t>(policy.size())};
  const MaskVector mask(policy.size(), 1);
  LocalReducer local;
  const auto normalizer = MakeNormalizer(shape, mask, 4, local);
  EXPECT_OK(normalizer);
  auto result =
      PolicyLoss<double>({shape, policy, old, advantages, mask, behaviour, {}},
                         options, *normalizer);
  EXPECT_OK(result);
  return result.value_or(PolicyLossResult<double>());
}

TEST(PublicVectorsTest, Section1MeansOfRanksAreNotTheMean) {
  const auto first = LossOfRow({kPolicy.begin(), kPolicy.begin() + 4},
                               {kOld.begin(), kOld.begin() + 4},
                               {kAdvantages.begin(), kAdvantages.begin() + 4});
  const auto second = LossOfRow({kPolicy.begin() + 4, kPolicy.end()},
                                {kOld.begin() + 4, kOld.end()},
                                {kAdvantages.begin() + 4, kAdvantages.end()});
  EXPECT_NEAR(first.loss, -.463146, kPrinted);
  EXPECT_NEAR(second.loss, -.58, kPrinted);
  EXPECT_NEAR((first.loss + second.loss) / 2, -.521573, kPrinted);
  EXPECT_NEAR(LossOfRow(kPolicy, kOld, kAdvantages).loss, -.502098, kPrinted);
}

TEST(PublicVectorsTest, Section4LossOfEachPair) {
  const struct {
    double better, worse, loss;
  } pairs[] = {{1.2, .3, .341154}, {1.2, -.5, .167786}, {1.2, .1, .287335},
               {.3, -.5, .371101}, {.3, .1, .598139},   {.1, -.5, .437488}};
  for (const auto& pair : pairs) {
    const Doubles scores = {pair.better, pair.worse};
    const std::vector<int64_t> ranks = {1, 2};
    const std::vector<int64_t> sizes = {2};
    const auto result = RmPairwiseLoss<double>(scores, ranks, sizes, {});
    ASSERT_OK(result);
    EXPECT_NEAR(result->loss, pair.loss, kPrinted);
  }
}

TEST(PublicVectorsTest, Section5StatisticsBehindReinforcePlusPlus) {
  LocalReducer local;
  const Doubles returns = {.775, .785, .78, .8, -.215, -.2};
  const auto plain = Whiten<double>(returns, MaskVector(6, 1), {}, local);
  ASSERT_OK(plain);
  EXPECT_NEAR(plain->mean, .454167, kPrinted);
  EXPECT_NEAR(plain->var, .218978, kPrinted);
  const Doubles centred = {.5, .5, .5, -.5, -.5, .1, -.1, -.1};
  const auto baseline = Whiten<double>(centred, MaskVector(8, 1), {}, local);
  ASSERT_OK(baseline);
  EXPECT_NEAR(baseline->mean, .05, kPrinted);
  EXPECT_NEAR(baseline->var, .1575, kPrinted);
}

TEST(PublicVectorsTest, Section5GainFromTheSampleDeviation) {
  const auto normalizer =
      FitRewardNormalizer(Doubles{.8, 1.2, -.4, .4}, NormalizeMode::kGain);
  ASSERT_OK(normalizer);
  EXPECT_NEAR(1 / normalizer->gain, .683130, kPrinted);
}

TEST(PublicVectorsTest, Section6LossOfEachToken) {
  const Doubles plain = {-.552585, .8, -2.4, .3, .64, -1.8};
  const Doubles higher = {-.552585, .8, -2.56, .3, .64, -1.92};
  PolicyLossOptions dapo;
  dapo.eps_hi = .28;
  double k1 = 0;
  double k3 = 0;
  for (size_t i = 0; i < kOld.size(); ++i) {
    const auto token = [&](const PolicyLossOptions& options) {
      return LossOfRow({kPolicy[i]}, {kOld[i]}, {kAdvantages[i]}, options);
    };
    EXPECT_NEAR(token({}).loss, plain[i], kPrinted) << i;
    EXPECT_NEAR(token(dapo).loss, higher[i], kPrinted) << i;
    k1 += KlOfToken(KlKind::kK1, kOld[i] - kPolicy[i], false).value / 6;
    k3 += KlOfToken(KlKind::kK3, kOld[i] - kPolicy[i], false).value / 6;
  }
  EXPECT_NEAR(k1, -.05, kPrinted);
  EXPECT_NEAR(k3, .045076, kPrinted);
}

TEST(PublicVectorsTest, Section6RatiosOfTheBatchAndOfItsSequences) {
  const Doubles u = {1.105171, .740818, 1.491825, 1, .740818, 1.491825};
  for (size_t i = 0; i < u.size(); ++i) {
    const auto token = LossOfRow({kPolicy[i]}, {kOld[i]}, {1});
    EXPECT_NEAR(token.sums.Finish().ratio, u[i], kPrinted) << i;
  }
  PolicyLossOptions gspo;
  gspo.kind = PolicyLossKind::kGspo;
  gspo.agg = LossAgg::kSeqMeanTokenMean;
  // Within the clip, A = −1 shows s itself.
  gspo.eps_lo = gspo.eps_hi = 1;
  const Doubles minus(4, -1.0);
  EXPECT_NEAR(LossOfRow({kPolicy.begin(), kPolicy.begin() + 4},
                        {kOld.begin(), kOld.begin() + 4}, minus, gspo)
                  .loss,
              1.051271, kPrinted);
  gspo.eps_lo = 3e-4;
  gspo.eps_hi = 4e-4;
  EXPECT_NEAR(LossOfRow({kPolicy.begin(), kPolicy.begin() + 4},
                        {kOld.begin(), kOld.begin() + 4}, Doubles(4, 1.0), gspo)
                  .loss,
              -1.0004, kPrinted);
  EXPECT_NEAR(LossOfRow({kPolicy.begin() + 4, kPolicy.end()},
                        {kOld.begin() + 4, kOld.end()}, {-.5, -.5}, gspo)
                  .loss,
              .525636, kPrinted);
}

TEST(PublicVectorsTest, Section6SquaresOfTheValueLoss) {
  const Doubles old = {.5, .6, .4, .8, 1};
  const Doubles values = {.55, 1, .1, .79, 1.5};
  const Doubles returns = {1.312153125, 1.3706875, 1.41125, 1.475, 1.5};
  const Doubles unclipped = {.580877, .137409, 1.719377, .469225, 0};
  const Doubles larger = {.580877, .325684, 1.719377, .469225, .09};
  LocalReducer local;
  for (size_t i = 0; i < old.size(); ++i) {
    const MaskVector mask = {1};
    const auto normalizer = MakeNormalizer({1, 1}, mask, 0, local);
    ASSERT_OK(normalizer);
    const Doubles v = {values[i]};
    const Doubles v_old = {old[i]};
    const Doubles r = {returns[i]};
    const ValueLossInput<double> input{{1, 1}, v, v_old, r, mask};
    ValueLossOptions options;
    options.clip = .2;
    EXPECT_NEAR(ValueLoss(input, options, *normalizer)->loss, larger[i] / 2,
                kPrinted);
    options.clip.reset();
    EXPECT_NEAR(ValueLoss(input, options, *normalizer)->loss, unclipped[i] / 2,
                kPrinted);
  }
}

TEST(PublicVectorsTest, Section7WeightsOfTokensAndSequences) {
  const Doubles w = {1.221403, .904837, 1.105171, 2.225541, 1, .818731};
  for (size_t i = 0; i < w.size(); ++i) {
    const auto token =
        LossOfRow({kPolicy[i]}, {kOld[i]}, {1}, {}, {kBehaviour[i]});
    EXPECT_NEAR(token.sums.Finish().w_mean, w[i], kPrinted) << i;
  }
  // With A = −1 at ratio 1, the loss of a row is its mean weight.
  PolicyLossOptions sequence;
  sequence.is_mode = IsMode::kSeqTruncate;
  sequence.is_hi = 100;
  const auto row = [&](size_t begin, size_t end) {
    const Doubles old(kOld.begin() + begin, kOld.begin() + end);
    const Doubles behaviour(kBehaviour.begin() + begin,
                            kBehaviour.begin() + end);
    return LossOfRow(old, old, Doubles(old.size(), -1.0), sequence, behaviour)
        .loss;
  };
  EXPECT_NEAR(row(0, 4), 2.718282, kPrinted);
  EXPECT_NEAR(row(4, 6), .818731, kPrinted);
  // The geometric means, by the bounds that let them pass or not.
  sequence.is_mode = IsMode::kGeometricMask;
  const auto passes = [&](double lo, double hi, size_t begin, size_t end) {
    sequence.is_lo = lo;
    sequence.is_hi = hi;
    return row(begin, end) != 0;
  };
  EXPECT_TRUE(passes(1.284025, 1.284026, 0, 4));
  EXPECT_FALSE(passes(1.284026, 9, 0, 4));
  EXPECT_TRUE(passes(.904837, .904838, 4, 6));
  EXPECT_FALSE(passes(.904838, 9, 4, 6));
}

TEST(PublicVectorsTest, Section10MassOfTwoTokensIsBelowTheNucleus) {
  const Doubles logits = {2, 1, .5, -1, -1.5};
  TokenSampler sampler;
  ASSERT_OK(sampler.Process<double>(logits, {.temperature = .7}, {}, 0));
  double mass = 0;
  for (int64_t id = 0; id < 2; ++id) mass += std::exp(sampler.Logprob(id));
  EXPECT_NEAR(mass, .899946, kPrinted);
}

}  // namespace
}  // namespace cox
