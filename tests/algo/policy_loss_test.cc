#include "lib/algo/policy_loss.h"

#include "tests/algo/numeric.h"

namespace cox {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr Shape2 kShape{2, 4};
// The batch of docs/algorithms.md §6; the second sequence has two tokens.
const MaskVector kMask = {1, 1, 1, 1, 1, 1, 0, 0};
const Doubles kOld = {-1, -2, -.5, -1.5, -.7, -1.2, kNan, kInf};
const Doubles kPolicy = {-.9, -2.3, -.1, -1.5, -1, -.8, kNan, -kInf};
const Doubles kAdvantages = {.5, -1, 2, -.3, -.8, 1.5, kNan, kInf};
const Doubles kSequenceAdvantages = {1, 1, 1, 1, -.5, -.5, kNan, kInf};
const Doubles kBehaviour = {-1.2, -1.9, -.6, -2.3, -.7, -1, kNan, kInf};

struct Case {
  Doubles policy = kPolicy;
  Doubles old = kOld;
  Doubles advantages = kAdvantages;
  Doubles behaviour;
  Doubles reference;
  MaskVector mask = kMask;
  Shape2 shape = kShape;
  double t_max = 4;
  PolicyLossOptions options;
};

absl::StatusOr<PolicyLossResult<double>> TryLoss(const Case& c) {
  LocalReducer local;
  COX_ASSIGN_OR_RETURN(const LossNormalizer normalizer,
                       MakeNormalizer(c.shape, c.mask, c.t_max, local));
  return PolicyLoss<double>({c.shape, c.policy, c.old, c.advantages, c.mask,
                             c.behaviour, c.reference},
                            c.options, normalizer);
}

PolicyLossResult<double> Loss(const Case& c) {
  absl::StatusOr<PolicyLossResult<double>> result = TryLoss(c);
  EXPECT_OK(result);
  return result.value_or(PolicyLossResult<double>());
}

TEST(PolicyLossTest, PpoMatchesTheReference) {
  const auto r = Loss({});
  EXPECT_NEAR(r.loss, -.502098, kPrinted);
  EXPECT_THAT(r.grad, IsNear({-.092098, 0, 0, .05, 0, 0, 0, 0}));
  const PolicyMetrics metrics = r.sums.Finish();
  EXPECT_NEAR(metrics.clipfrac, .666667, kPrinted);
  EXPECT_NEAR(metrics.approxkl, .0425, kPrinted);
  EXPECT_NEAR(metrics.ratio, 1.095076, kPrinted);
  EXPECT_EQ(metrics.w_mean, 1);
  EXPECT_EQ(metrics.ess, 1);
}

TEST(PolicyLossTest, DapoUpperBoundMatchesTheReference) {
  Case c;
  c.options.eps_hi = .28;
  EXPECT_NEAR(Loss(c).loss, -.548764, kPrinted);
}

TEST(PolicyLossTest, AggregationsMatchTheReference) {
  Case c;
  c.advantages = kSequenceAdvantages;
  c.options.eps_hi = .28;
  const std::pair<LossAgg, double> expected[] = {
      {LossAgg::kTokenMean, -.496679},
      {LossAgg::kSeqMeanTokenMean, -.229271},
      {LossAgg::kSeqMeanTokenSum, -1.490038},
      {LossAgg::kConst, -.372510}};
  for (const auto& [agg, loss] : expected) {
    c.options.agg = agg;
    EXPECT_NEAR(Loss(c).loss, loss, kPrinted);
  }
}

TEST(PolicyLossTest, GspoMatchesTheReference) {
  Case c;
  c.advantages = kSequenceAdvantages;
  c.options.kind = PolicyLossKind::kGspo;
  c.options.agg = LossAgg::kSeqMeanTokenMean;
  c.options.eps_lo = 3e-4;
  c.options.eps_hi = 4e-4;
  EXPECT_NEAR(Loss(c).loss, -.237382, kPrinted);
  c.options.eps_lo = c.options.eps_hi = .2;
  const auto r = Loss(c);
  EXPECT_NEAR(r.loss, -.262818, kPrinted);
  EXPECT_THAT(r.grad, IsNear({-.131409, -.131409, -.131409, -.131409, .131409,
                              .131409, 0, 0}));
}

TEST(PolicyLossTest, GspoWantsOneAdvantagePerSequence) {
  Case c;
  c.options.kind = PolicyLossKind::kGspo;
  EXPECT_THAT(TryLoss(c), testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                            HasSubstr("advantages")));
}

TEST(PolicyLossTest, CispoMatchesTheReference) {
  Case c;
  c.advantages = kSequenceAdvantages;
  c.options.kind = PolicyLossKind::kCispo;
  c.options.eps_hi = .28;
  const auto r = Loss(c);
  EXPECT_NEAR(r.loss, .574021, kPrinted);
  EXPECT_THAT(r.grad, IsNear({-.184195, -.123470, -.213333, -.166667, .061735,
                              .106667, 0, 0}));
}

struct DualCase {
  double advantage, ratio, loss, grad;
};
class DualClipTest : public ::testing::TestWithParam<DualCase> {};

TEST_P(DualClipTest, MatchesTheReference) {
  const DualCase& d = GetParam();
  Case c;
  c.shape = {1, 1};
  c.mask = {1};
  c.old = {0};
  c.policy = {std::log(d.ratio)};
  c.advantages = {d.advantage};
  c.options.dual_clip = 3;
  const auto r = Loss(c);
  EXPECT_NEAR(r.loss, d.loss, kPrinted);
  EXPECT_NEAR(r.grad[0], d.grad, kPrinted);
}
INSTANTIATE_TEST_SUITE_P(Algorithms6, DualClipTest,
                         ::testing::Values(DualCase{-1, 5, 3, 0},
                                           DualCase{-1, 2, 2, 2},
                                           DualCase{1, 5, -1.2, 0},
                                           DualCase{-1, .5, .8, 0}));

TEST(PolicyLossTest, PlainPpoHasNoDualBound) {
  Case c;
  c.shape = {1, 1};
  c.mask = {1};
  c.old = {0};
  c.policy = {std::log(5.0)};
  c.advantages = {-1};
  const auto r = Loss(c);
  EXPECT_NEAR(r.loss, 5, kPrinted);
  EXPECT_NEAR(r.grad[0], 5, kPrinted);
}

TEST(PolicyLossTest, BoundaryRatioIsNotClipped) {
  Case c;
  c.shape = {1, 1};
  c.mask = {1};
  c.old = {0};
  c.policy = {std::log(1.25)};
  c.advantages = {1};
  c.options.eps_hi = std::exp(std::log(1.25)) - 1;
  const auto r = Loss(c);
  EXPECT_EQ(r.sums.clipped, 0);
  EXPECT_NE(r.grad[0], 0);
}

struct IsCase {
  IsMode mode;
  double lo, hi, loss;
};
class ImportanceTest : public ::testing::TestWithParam<IsCase> {};

TEST_P(ImportanceTest, MatchesTheReference) {
  Case c;
  c.behaviour = kBehaviour;
  c.options.is_mode = GetParam().mode;
  c.options.is_lo = GetParam().lo;
  c.options.is_hi = GetParam().hi;
  EXPECT_NEAR(Loss(c).loss, GetParam().loss, kPrinted);
}
INSTANTIATE_TEST_SUITE_P(
    Algorithms7, ImportanceTest,
    ::testing::Values(IsCase{IsMode::kTokenTruncate, 0, 2, -.472864},
                      IsCase{IsMode::kTokenMask, .5, 2, -.572864},
                      IsCase{IsMode::kSeqTruncate, 0, 3, -.997596}));

TEST(PolicyLossTest, SequenceAndGeometricMasksDropWholeSequences) {
  Case c;
  c.behaviour = kBehaviour;
  c.options.is_mode = IsMode::kSeqMask;
  c.options.is_hi = 2.5;
  // W = (2.718282, .818731): only the second sequence stays, weighted by W.
  EXPECT_NEAR(Loss(c).loss, .818731 * (.64 - 1.8) / 6, kPrinted);
  // Geometric means (1.284025, .904837): the first goes at is_hi 1.2, the
  // second keeps its token weights (1, .818731).
  c.options.is_mode = IsMode::kGeometricMask;
  c.options.is_hi = 1.2;
  EXPECT_NEAR(Loss(c).loss, (.64 - .818731 * 1.8) / 6, kPrinted);
}

TEST(PolicyLossTest, WeightsOnTheBoundsAreKept) {
  Case c;
  c.old = c.behaviour = kPolicy;  // every weight is exactly 1
  c.options.is_lo = c.options.is_hi = 1;
  for (const IsMode mode :
       {IsMode::kTokenMask, IsMode::kSeqMask, IsMode::kGeometricMask}) {
    c.options.is_mode = mode;
    EXPECT_NEAR(Loss(c).loss, -(.5 - 1 + 2 - .3 - .8 + 1.5) / 6, kExact);
  }
}

// Without advantages only β·mean(k2) is left, whatever the weights are.
TEST(PolicyLossTest, KlTermHasNoImportanceWeight) {
  Case c;
  c.shape = {1, 2};
  c.mask = {1, 1};
  c.policy = c.old = {-1, -2};
  c.behaviour = {-2, -4};
  c.advantages = {0, 0};
  c.reference = {-1.5, -1};
  c.options.kl_loss = KlLoss::kK2;
  c.options.kl_beta = .2;
  const auto r = Loss(c);
  EXPECT_NEAR(r.loss, .2 * (.125 + .5) / 2, kExact);
  EXPECT_THAT(r.grad, IsNear({.05, -.1}, kExact));
}

TEST(PolicyLossTest, EffectiveSampleSizeMatchesTheReference) {
  Case c;
  c.behaviour = kBehaviour;
  const PolicyMetrics metrics = Loss(c).sums.Finish();
  EXPECT_NEAR(metrics.ess, .868766, kPrinted);
  EXPECT_NEAR(metrics.w_max, 2.225541, kPrinted);
}

TEST(PolicyLossTest, PlainPpoAgainstBehaviourMatchesTheReference) {
  Case c;
  c.old = kBehaviour;
  EXPECT_NEAR(Loss(c).loss, -.448723, kPrinted);
}

TEST(PolicyLossTest, EmptyMinibatchIsZeroEverywhere) {
  Case c;
  c.mask = MaskVector(8, 0);
  c.behaviour = Doubles(8, kNan);
  for (const PolicyLossKind kind :
       {PolicyLossKind::kPpo, PolicyLossKind::kGspo, PolicyLossKind::kCispo,
        PolicyLossKind::kReinforce}) {
    c.options.kind = kind;
    const auto r = Loss(c);
    EXPECT_EQ(r.loss, 0);
    EXPECT_THAT(r.grad, Each(0.0));
    EXPECT_EQ(r.sums.Finish().ess, 0);
  }
}

TEST(PolicyLossTest, ExtremeRatiosStayFiniteAndStopGradient) {
  Case c;
  c.shape = {1, 2};
  c.mask = {1, 1};
  c.old = {-500, -1};
  c.policy = {-1, -500};
  c.advantages = {-1, -1};
  const auto r = Loss(c);
  // Mean of e^20 and the lower clip .8.
  EXPECT_NEAR(r.loss, (std::exp(20) + .8) / 2, 1e-6 * std::exp(20));
  EXPECT_THAT(r.grad, Each(0.0));
}

TEST(PolicyLossTest, ArgumentsAreNamedInErrors) {
  Case c;
  c.options.dual_clip = .5;
  EXPECT_THAT(TryLoss(c), testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                            HasSubstr("dual_clip")));
  c = {};
  c.advantages[2] = kNan;
  EXPECT_THAT(TryLoss(c), testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                            HasSubstr("advantages")));
  c = {};
  c.options.is_mode = IsMode::kTokenMask;
  EXPECT_THAT(TryLoss(c), testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                            HasSubstr("behaviour_logprob")));
  EXPECT_THAT(ParseKlLoss("k1"),
              testing::StatusIs(absl::StatusCode::kInvalidArgument));
}

// Every kind, correction, KL term and aggregation against differences.
TEST(PolicyLossTest, GradientIsTheDerivative) {
  CounterRng rng(11, "policy-gradient");
  const Shape2 shape{3, 4};
  for (int trial = 0; trial < 60; ++trial) {
    Case c;
    c.shape = shape;
    c.mask = RandomMask(rng, 12);
    const Doubles policy = Normals(rng, 12, -2, .5);
    c.old = policy;
    for (double& x : c.old) x += .3 * rng.NextNormal();
    c.behaviour = c.old;
    for (double& x : c.behaviour) x += .3 * rng.NextNormal();
    c.reference = Poisoned(Normals(rng, 12, -2, .5), c.mask);
    c.advantages.resize(12);
    for (int b = 0; b < 3; ++b) {
      const double a = rng.NextNormal();
      for (int t = 0; t < 4; ++t) c.advantages[4 * b + t] = a;
    }
    c.options.kind = static_cast<PolicyLossKind>(trial % 5);
    c.options.agg = static_cast<LossAgg>(trial % 4);
    c.options.is_mode = static_cast<IsMode>(trial % 6);
    c.options.kl_loss = static_cast<KlLoss>(trial % 3);
    c.options.kl_beta = .2;
    if (trial % 2 == 0) c.options.dual_clip = 1.1;
    // CISPO's bounded ratio is constant in the gradient: differentiate
    // REINFORCE with that ratio folded into the advantage.
    Case surrogate = c;
    if (c.options.kind == PolicyLossKind::kCispo) {
      surrogate.options.kind = PolicyLossKind::kReinforce;
      for (int i = 0; i < 12; ++i) {
        surrogate.advantages[i] *=
            std::min(std::exp(policy[i] - c.old[i]), 1 + c.options.eps_hi);
      }
    }
    const auto loss = [&](const Doubles& x) {
      surrogate.policy = x;
      return Loss(surrogate).loss;
    };
    c.policy = Poisoned(policy, c.mask);
    EXPECT_THAT(Loss(c).grad,
                IsNear(FiniteDifferences(loss, policy, c.mask), 1e-7))
        << "trial " << trial;
  }
}

TEST(PolicyLossTest, OffPolicyFilterDropsDriftedSequences) {
  Case c;
  c.shape = {2, 1};
  c.mask = {1, 1};
  c.old = c.behaviour = {-1, -1};
  c.policy = {-2, -2};
  c.advantages = {-1, 1};
  c.options.kind = PolicyLossKind::kReinforce;
  c.options.off_policy_delta = .5;
  // Drift 1 > .5, but only the row with A < 0 goes: −(1)(−2)/2.
  const auto r = Loss(c);
  EXPECT_NEAR(r.loss, 1, kExact);
  EXPECT_EQ(r.grad[0], 0);
}

TEST(ProxInterpolateTest, MatchesTheReference) {
  const std::vector<int64_t> versions(8, 1);
  ASSERT_OK_AND_ASSIGN(
      const Doubles half,
      ProxInterpolate<double>(kShape, kBehaviour, kPolicy, kMask,
                              {versions, /*proximal=*/2, /*policy=*/3}));
  EXPECT_THAT(half, IsNear({-1.05, -2.1, -.35, -1.9, -.85, -.9, 0, 0}));
}

TEST(ProxInterpolateTest, WeightsByTheAgeOfTheToken) {
  const std::vector<int64_t> versions = {0, 2};
  const Doubles behaviour = {-1, -1};
  const Doubles policy = {-2, -2};
  const MaskVector mask = {1, 1};
  // α = (3 − 0)/(4 − 0) and (3 − 2)/(4 − 2).
  ASSERT_OK_AND_ASSIGN(const Doubles prox,
                       ProxInterpolate<double>({1, 2}, behaviour, policy, mask,
                                               {versions, 3, 4}));
  EXPECT_THAT(prox, IsNear({-1.75, -1.5}, kExact));
}

TEST(ProxInterpolateTest, FreshTokensKeepTheirOwn) {
  const std::vector<int64_t> versions(8, 2);
  ASSERT_OK_AND_ASSIGN(const Doubles prox,
                       ProxInterpolate<double>(kShape, kBehaviour, kPolicy,
                                               kMask, {versions, 2, 2}));
  EXPECT_EQ(prox[0], kBehaviour[0]);
  EXPECT_THAT(ProxInterpolate<double>(kShape, kBehaviour, kPolicy, kMask,
                                      {versions, 2, 1}),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("v_theta")));
}

}  // namespace
}  // namespace cox
