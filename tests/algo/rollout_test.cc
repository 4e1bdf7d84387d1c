#include "lib/algo/rollout.h"

#include "tests/algo/numeric.h"

namespace cox {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Doubles kLogprob = {-1, -2, -.5, -1.5};
const Doubles kReference = {-1.2, -1.9, -.9, -1.5};
const MaskVector kOnes4 = {1, 1, 1, 1};

TEST(PositionIdsTest, CountsRealTokensFromZero) {
  const MaskVector mask = {0, 0, 1, 1, 1};
  EXPECT_THAT(PositionIds({1, 5}, mask),
              testing::IsOkAndHolds(ElementsAre(0, 0, 0, 1, 2)));
}

TEST(PositionIdsTest, RightPaddingStaysInsideTheTable) {
  const MaskVector mask = {1, 1, 0, 0};
  EXPECT_THAT(PositionIds({1, 4}, mask),
              testing::IsOkAndHolds(ElementsAre(0, 1, 1, 1)));
}

TEST(CutResponseTest, PadsAfterTheFirstStopToken) {
  const std::vector<int64_t> tokens = {5, 9, 7, 5, 5, 5, 9, 8, 9};
  CutOptions options;
  options.stop_ids = {9, 8};
  options.pad_id = 0;
  ASSERT_OK_AND_ASSIGN(const CutResult cut,
                       CutResponse({3, 3}, tokens, options));
  EXPECT_THAT(cut.tokens, ElementsAre(5, 9, 0, 5, 5, 5, 9, 0, 0));
  EXPECT_THAT(cut.mask, ElementsAre(1, 1, 0, 1, 1, 1, 1, 0, 0));
  EXPECT_THAT(cut.length, ElementsAre(2, 3, 1));
  EXPECT_THAT(cut.finish,
              ElementsAre(FinishReason::kStop, FinishReason::kLength,
                          FinishReason::kStop));
}

TEST(CutResponseTest, EarlyStopTokensDoNotStop) {
  const std::vector<int64_t> tokens = {9, 1, 9, 2};
  CutOptions options;
  options.stop_ids = {9};
  options.min_stop_index = 1;
  ASSERT_OK_AND_ASSIGN(const CutResult cut,
                       CutResponse({1, 4}, tokens, options));
  EXPECT_THAT(cut.tokens, ElementsAre(9, 1, 9, 0));
}

TEST(CutResponseTest, RefusesPadAsStopToken) {
  CutOptions options;
  options.stop_ids = {0};
  const std::vector<int64_t> tokens = {1};
  EXPECT_THAT(CutResponse({1, 1}, tokens, options),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("pad_id")));
}

struct KlCase {
  KlKind kind;
  Doubles kl;
  double mean;
};
class KlVectorTest : public ::testing::TestWithParam<KlCase> {};

TEST_P(KlVectorTest, MatchesTheReference) {
  ASSERT_OK_AND_ASSIGN(const auto kl,
                       EstimateKl<double>({1, 4}, kLogprob, kReference, kOnes4,
                                          GetParam().kind));
  EXPECT_THAT(kl.kl, IsNear(GetParam().kl));
  EXPECT_NEAR(kl.mean, GetParam().mean, kPrinted);
}
INSTANTIATE_TEST_SUITE_P(
    Algorithms51, KlVectorTest,
    ::testing::Values(
        KlCase{KlKind::kK1, {.2, -.1, .4, 0}, .125},
        KlCase{KlKind::kK2, {.02, .005, .08, 0}, .02625},
        KlCase{KlKind::kK3, {.018731, .005171, .070320, 0}, .023555}));

TEST(KlTest, GradientIsTheDerivative) {
  for (const KlKind kind : {KlKind::kK1, KlKind::kK2, KlKind::kK3}) {
    ASSERT_OK_AND_ASSIGN(
        const auto kl,
        EstimateKl<double>({1, 4}, kLogprob, kReference, kOnes4, kind));
    const auto total = [&](const Doubles& x) {
      return EstimateKl<double>({1, 4}, x, kReference, kOnes4, kind)->sum[0];
    };
    EXPECT_THAT(kl.grad,
                IsNear(FiniteDifferences(total, kLogprob, kOnes4), 1e-8));
  }
}

TEST(KlTest, ClampStopsGradientOutside) {
  // e^3 − 1 − 3 = 16.09 > 10.
  const KlTerm capped = KlOfToken(KlKind::kK3, -3, /*clamp=*/true);
  EXPECT_EQ(capped.value, 10);
  EXPECT_EQ(capped.grad, 0);
  // e^{−20} − 1 + 20 > 10 as well.
  EXPECT_EQ(KlOfToken(KlKind::kK3, 500, true).value, 10);
  // Unclamped: e^{−500} − 1 + 500.
  EXPECT_NEAR(KlOfToken(KlKind::kK3, 500).value, 499, kExact);
}

TEST(KlTest, PoisonUnderMaskIsNotRead) {
  const MaskVector mask = {1, 0, 1, 0};
  ASSERT_OK_AND_ASSIGN(
      const auto kl,
      EstimateKl<double>({1, 4}, Poisoned(kLogprob, mask),
                         Poisoned(kReference, mask), mask, KlKind::kK1));
  EXPECT_THAT(kl.kl, IsNear({.2, 0, .4, 0}, kExact));
  EXPECT_NEAR(kl.mean, .3, kExact);
}

TEST(KlTest, NonFiniteTokenIsNamed) {
  Doubles bad = kLogprob;
  bad[2] = kNan;
  EXPECT_THAT(EstimateKl<double>({1, 4}, kLogprob, bad, kOnes4, KlKind::kK1),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("ref_logprob")));
}

ShapedRewards<double> Shape(const Doubles& score, const MaskVector& mask,
                            const ShapeRewardsOptions& options,
                            const std::vector<FinishReason>& finish = {}) {
  const RewardInput<double> input{{1, 4}, kLogprob, kReference,
                                  mask,   score,    finish};
  absl::StatusOr<ShapedRewards<double>> shaped = ShapeRewards(input, options);
  EXPECT_OK(shaped);
  return shaped.value_or(ShapedRewards<double>());
}

TEST(ShapeRewardsTest, MatchesTheReference) {
  ShapeRewardsOptions options;
  options.beta = .05;
  const auto shaped = Shape({.8}, kOnes4, options);
  EXPECT_THAT(shaped.rewards, IsNear({-.01, .005, -.02, .8}));
  EXPECT_NEAR(shaped.kl_sum[0], .5, kPrinted);
}

TEST(ShapeRewardsTest, PlacesTheScoreOnTheLastToken) {
  ShapeRewardsOptions options;
  options.beta = .05;
  const MaskVector three = {1, 1, 1, 0};
  const auto last = Shape({.8}, three, options);
  EXPECT_THAT(last.rewards, IsNear({-.01, .005, .78, 0}));
  EXPECT_EQ(last.value_mask, three);
}

TEST(ShapeRewardsTest, PlacesTheScoreAfterTheLastToken) {
  ShapeRewardsOptions options;
  options.beta = .05;
  options.position = ScorePosition::kAfterLast;
  const auto after = Shape({.8}, {1, 1, 1, 0}, options);
  EXPECT_THAT(after.rewards, IsNear({-.01, .005, -.02, .8}));
  EXPECT_THAT(after.value_mask, ElementsAre(1, 1, 1, 1));
  // No room behind the last token: it takes the score itself.
  const auto full = Shape({.8}, kOnes4, options);
  EXPECT_THAT(full.rewards, IsNear({-.01, .005, -.02, .8}));
}

TEST(ShapeRewardsTest, MissingStopComesBeforeTheClip) {
  ShapeRewardsOptions options;
  options.missing_stop = MissingStop::kSubtract;
  options.missing_stop_value = 3;
  options.score_clip = 2;
  const std::vector<FinishReason> cut = {FinishReason::kLength};
  // .8 − 3 = −2.2, clipped to −2.
  EXPECT_NEAR(Shape({.8}, kOnes4, options, cut).rewards[3], -2, kExact);
  options.missing_stop = MissingStop::kReplace;
  options.missing_stop_value = 1;
  EXPECT_NEAR(Shape({.8}, kOnes4, options, cut).rewards[3], -1, kExact);
  const std::vector<FinishReason> stop = {FinishReason::kStop};
  EXPECT_NEAR(Shape({.8}, kOnes4, options, stop).rewards[3], .8, kExact);
}

TEST(ShapeRewardsTest, RowWithoutMaskGetsNothing) {
  const auto shaped = Shape({kNan}, {0, 0, 0, 0}, ShapeRewardsOptions());
  EXPECT_THAT(shaped.rewards, ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(shaped.value_mask, ElementsAre(0, 0, 0, 0));
}

TEST(RewardNormalizerTest, MatchesTheReference) {
  const Doubles demos = {.8, 1.2, -.4, .4};
  ASSERT_OK_AND_ASSIGN(const RewardNormalizer bias,
                       FitRewardNormalizer(demos, NormalizeMode::kBias));
  EXPECT_NEAR(bias.gain, 1, kExact);
  EXPECT_NEAR(bias.bias, -.5, kExact);
  ASSERT_OK_AND_ASSIGN(const RewardNormalizer gain,
                       FitRewardNormalizer(demos, NormalizeMode::kGain));
  EXPECT_NEAR(gain.gain, 1.463850, kPrinted);
  EXPECT_NEAR(gain.bias, -.731925, kPrinted);
}

TEST(RewardNormalizerTest, GainNeedsSpread) {
  const Doubles equal = {.1, .1, .1};
  EXPECT_THAT(FitRewardNormalizer(equal, NormalizeMode::kGain),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("scores")));
}

TEST(OverlongPenaltyTest, MatchesTheReference) {
  const int64_t lengths[] = {12, 15, 20, 22};
  const double expected[] = {0, -.375, -1, -1};
  for (int i = 0; i < 4; ++i) {
    ASSERT_OK_AND_ASSIGN(const double penalty,
                         OverlongPenalty(lengths[i], 20, 8));
    EXPECT_NEAR(penalty, expected[i], kExact);
  }
}

TEST(DynamicFilterTest, DropsConstantGroups) {
  const Doubles metric = {1, 0, 1, 1, 0};
  const std::vector<int64_t> group = {7, -1, 7, -1, 3};
  EXPECT_THAT(DynamicFilter(metric, group),
              testing::IsOkAndHolds(ElementsAre(0, 1, 0, 1, 0)));
}

TEST(KlControllerTest, MatchesTheReference) {
  const double kls[] = {8, 7, 5.4, 1};
  const double expected[] = {.151536, .151280, .149232, .148464};
  for (int i = 0; i < 4; ++i) {
    ASSERT_OK_AND_ASSIGN(KlController controller,
                         KlController::Adaptive(.15, 6, 10000));
    ASSERT_OK(controller.Update(kls[i], 512));
    EXPECT_NEAR(controller.beta(), expected[i], kPrinted);
  }
}

TEST(KlControllerTest, FixedStays) {
  ASSERT_OK_AND_ASSIGN(KlController controller, KlController::Fixed(.02));
  ASSERT_OK(controller.Update(100, 512));
  EXPECT_EQ(controller.beta(), .02);
  EXPECT_THAT(KlController::Adaptive(.1, 0, 10),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("target")));
}

}  // namespace
}  // namespace cox
