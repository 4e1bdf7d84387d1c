#include "lib/algo/advantage.h"

#include "lib/algo/stats.h"
#include "tests/algo/numeric.h"

namespace cox {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

const Doubles kRewards = {-.02, .01, -.03, 0, 1.5};
const Doubles kValues = {.5, .6, .4, .8, 1};
const MaskVector kOnes5(5, 1);

TEST(GaeTest, MatchesTheReference) {
  ASSERT_OK_AND_ASSIGN(const auto gae,
                       Gae<double>({1, 5}, kRewards, kValues, kOnes5, 1, .95));
  EXPECT_THAT(gae.advantages, IsNear({.812153, .770688, 1.01125, .675, .5}));
  EXPECT_THAT(gae.returns, IsNear({1.312153, 1.370687, 1.41125, 1.475, 1.5}));
}

TEST(GaeTest, MatchesTheReferenceWithDiscount) {
  ASSERT_OK_AND_ASSIGN(const auto gae,
                       Gae<double>({1, 5}, kRewards, kValues, kOnes5, .99, .9));
  EXPECT_THAT(gae.advantages, IsNear({.638051, .633053, .928230, .6355, .5}));
}

TEST(GaeTest, SkipsInteriorTokensOfATool) {
  const MaskVector mask = {1, 1, 0, 0, 1};
  ASSERT_OK_AND_ASSIGN(const auto gae,
                       Gae<double>({1, 5}, Poisoned(kRewards, mask),
                                   Poisoned(kValues, mask), mask, 1, .95));
  EXPECT_THAT(gae.advantages, IsNear({.92075, .885, 0, 0, .5}));
  EXPECT_EQ(gae.returns[2], 0);
}

TEST(GaeTest, FloatsAgreeToSinglePrecision) {
  ASSERT_OK_AND_ASSIGN(const auto gae,
                       Gae<float>({1, 5}, ToFloats(kRewards), ToFloats(kValues),
                                  kOnes5, 1, .95));
  EXPECT_THAT(gae.advantages,
              IsNear({.812153, .770688, 1.01125, .675, .5}, 1e-5));
}

TEST(GaeTest, ScorePlacementChangesValuesAsInTheReference) {
  const Doubles values = {.5, .6, .4, .9};
  const MaskVector three = {1, 1, 1, 0};
  ASSERT_OK_AND_ASSIGN(
      const auto last,
      Gae<double>({1, 4}, Doubles{-.01, .005, .78, 0}, values, three, 1, .95));
  EXPECT_THAT(last.advantages, IsNear({.247700, .166000, .380000, 0}));
  ASSERT_OK_AND_ASSIGN(const auto after,
                       Gae<double>({1, 4}, Doubles{-.01, .005, -.02, .8},
                                   values, MaskVector{1, 1, 1, 1}, 1, .95));
  EXPECT_THAT(Doubles(after.advantages.begin(), after.advantages.begin() + 3),
              IsNear({.252213, .170750, .385000}));
  EXPECT_NEAR(after.returns[3], .8, kPrinted);
}

TEST(GaeTest, RejectsDiscountOutsideTheUnitInterval) {
  EXPECT_THAT(Gae<double>({1, 5}, kRewards, kValues, kOnes5, 1.1, .95),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("gamma")));
}

Doubles Baseline(GroupEstimator kind, const Doubles& scores, double eps) {
  const std::vector<int64_t> group(scores.size(), 3);
  absl::StatusOr<Doubles> result =
      GroupBaseline(kind, scores, group, /*valid=*/{}, eps);
  EXPECT_OK(result);
  return result.value_or(Doubles());
}

TEST(GroupBaselineTest, MatchesTheReference) {
  const Doubles rho = {1, 0, 0, .5};
  EXPECT_THAT(Baseline(GroupEstimator::kRloo, rho, 0),
              IsNear({.833333, -.5, -.5, .166667}));
  EXPECT_THAT(Baseline(GroupEstimator::kGrpo, rho, 1e-6),
              IsNear({1.305580, -.783348, -.783348, .261116}));
  EXPECT_THAT(Baseline(GroupEstimator::kGrpo, rho, 1e-4),
              IsNear({1.305310, -.783186, -.783186, .261062}));
  EXPECT_THAT(Baseline(GroupEstimator::kDrGrpo, rho, 0),
              IsNear({.625, -.375, -.375, .125}));
}

TEST(GroupBaselineTest, EqualScoresGiveExactlyZero) {
  // 3 · 0.1 / 3 is not 0.1 in binary.
  for (const GroupEstimator kind :
       {GroupEstimator::kRloo, GroupEstimator::kGrpo, GroupEstimator::kDrGrpo,
        GroupEstimator::kReinforcePpBaseline}) {
    EXPECT_THAT(Baseline(kind, {.1, .1, .1}, 0), Each(0.0));
  }
}

TEST(GroupBaselineTest, SingleMemberIsAnError) {
  const Doubles scores = {1, 2, 3};
  const std::vector<int64_t> group = {5, 5, 9};
  EXPECT_THAT(GroupBaseline(GroupEstimator::kDrGrpo, scores, group, {}),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("group")));
}

TEST(GroupBaselineTest, InvalidSamplesLeaveTheBaseline) {
  // Whether or not an invalid sample has a number.
  const Doubles scores = {1, 9, 0, kNan, 4};
  const std::vector<int64_t> group = {1, 1, 1, 2, 2};
  const MaskVector valid = {1, 0, 1, 0, 1};
  ASSERT_OK_AND_ASSIGN(
      const Doubles advantages,
      GroupBaseline(GroupEstimator::kRloo, scores, group, valid));
  // Group 2 has one valid member left: 0.
  EXPECT_THAT(advantages, IsNear({1, 0, -1, 0, 0}, kExact));
}

TEST(GroupAdvantagesTest, ReinforcePpMatchesTheReference) {
  const Doubles rewards = {-.01, .005, -.02, .8, -.015, -.2, kNan, kNan};
  const MaskVector mask = {1, 1, 1, 1, 1, 1, 0, 0};
  GroupInput<double> input;
  input.kind = GroupEstimator::kReinforcePp;
  input.shape = {2, 4};
  input.mask = mask;
  input.token_rewards = rewards;
  LocalReducer local;
  ASSERT_OK_AND_ASSIGN(const Doubles advantages, GroupAdvantages(input, local));
  EXPECT_THAT(advantages, IsNear({.685613, .706982, .696297, .739037, -1.429992,
                                  -1.397937, 0, 0}));
}

TEST(GroupAdvantagesTest, ReinforcePpBaselineMatchesTheReference) {
  const Doubles scores = {1, 0, .5, .3};
  const std::vector<int64_t> group = {0, 0, 1, 1};
  const MaskVector mask = {1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 0};
  GroupInput<double> input;
  input.kind = GroupEstimator::kReinforcePpBaseline;
  input.shape = {4, 3};
  input.mask = mask;
  input.scores = scores;
  input.group = group;
  LocalReducer local;
  ASSERT_OK_AND_ASSIGN(const Doubles a, GroupAdvantages(input, local));
  EXPECT_THAT((Doubles{a[0], a[3], a[6], a[9]}),
              IsNear({1.133893, -1.385870, .125988, -.377964}));
  EXPECT_EQ(a[5], 0);
}

TEST(GroupAdvantagesTest, RowWithoutMaskStillCountsInItsGroup) {
  const Doubles scores = {1, 0};
  const std::vector<int64_t> group = {0, 0};
  const MaskVector mask = {1, 1, 0, 0};
  GroupInput<double> input;
  input.kind = GroupEstimator::kDrGrpo;
  input.shape = {2, 2};
  input.mask = mask;
  input.scores = scores;
  input.group = group;
  LocalReducer local;
  ASSERT_OK_AND_ASSIGN(const Doubles a, GroupAdvantages(input, local));
  EXPECT_THAT(a, IsNear({.5, .5, 0, 0}, kExact));
}

}  // namespace
}  // namespace cox
