// Value, preference, reward-model and language-model losses.

#include "lib/algo/lm_loss.h"
#include "lib/algo/preference_loss.h"
#include "lib/algo/rm_loss.h"
#include "lib/algo/value_loss.h"
#include "tests/algo/numeric.h"

namespace cox {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

// ---- value loss (§6.1)

const Doubles kOldValues = {.5, .6, .4, .8, 1};
const Doubles kValues = {.55, 1, .1, .79, 1.5};
const Doubles kReturns = {1.312153125, 1.3706875, 1.41125, 1.475, 1.5};
const MaskVector kOnes5(5, 1);

absl::StatusOr<ValueLossResult<double>> RunValue(
    const Doubles& values, const MaskVector& mask,
    const ValueLossOptions& options, const Doubles& returns = kReturns) {
  const Shape2 shape{1, static_cast<int64_t>(values.size())};
  COX_ASSIGN_OR_RETURN(const LossNormalizer n, CountNormalizer(shape, mask));
  return ValueLoss<double>({shape, values, kOldValues, returns, mask}, options,
                           n);
}

TEST(ValueLossTest, MatchesTheReference) {
  ASSERT_OK_AND_ASSIGN(const auto r, RunValue(kValues, kOnes5, {}));
  EXPECT_NEAR(r.loss, .318516, kPrinted);
  EXPECT_NEAR(r.sums.Finish().clipfrac, .4, kExact);
}

TEST(ValueLossTest, MatchesTheReferenceWithoutClipping) {
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RunValue(kValues, kOnes5, {.clip = std::nullopt}));
  EXPECT_NEAR(r.loss, .290689, kPrinted);
  EXPECT_EQ(r.sums.Finish().clipfrac, 0);
  EXPECT_NEAR(r.sums.Finish().error, 2 * .290689, 2 * kPrinted);
}

TEST(ValueLossTest, GradientIsTheDerivative) {
  const MaskVector mask = {1, 1, 1, 0, 1};
  const auto loss = [&](const Doubles& v) {
    return RunValue(v, mask, {})->loss;
  };
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RunValue(Poisoned(kValues, mask), mask, {}));
  EXPECT_THAT(r.grad, IsNear(FiniteDifferences(loss, kValues, mask), 1e-8));
}

TEST(ValueLossTest, ConstantReturnsExplainNothing) {
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RunValue(kValues, kOnes5, {}, Doubles(5, .1)));
  EXPECT_EQ(r.sums.Finish().explained_var, 0);
}

TEST(ValueLossTest, PerfectValuesExplainAll) {
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RunValue(kReturns, kOnes5, {.clip = std::nullopt}));
  EXPECT_NEAR(r.sums.Finish().explained_var, 1, kExact);
}

TEST(ValueLossTest, EmptyMinibatchIsZero) {
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RunValue(Doubles(5, kNan), MaskVector(5, 0), {}));
  EXPECT_EQ(r.loss, 0);
  EXPECT_THAT(r.grad, Each(0.0));
  EXPECT_EQ(r.sums.Finish().explained_var, 0);
}

// ---- preference losses (§8)

// Per-token values whose sums are those of the vector: 6 and 5 tokens.
struct Pair {
  Doubles w = {-2, -2, -2, -2, -2, -2};
  Doubles w_ref = {-3, -2, -2, -2, -2, -2};
  Doubles l = {-3, -3, -3, -3, -3};
  Doubles l_ref = {-2.5, -3, -3, -3, -3};
  MaskVector ones = MaskVector(6, 1);
  CompletionLogprobs<double> Chosen() const { return {{1, 6}, w, w_ref, ones}; }
  CompletionLogprobs<double> Rejected() const {
    return {{1, 5}, l, l_ref, Mask(ones).first(5)};
  }
};

TEST(PreferenceLossTest, DpoMatchesTheReference) {
  const Pair pair;
  ASSERT_OK_AND_ASSIGN(const auto r,
                       PreferenceLoss(pair.Chosen(), pair.Rejected(), {}));
  EXPECT_NEAR(r.loss, .620957, kPrinted);
  EXPECT_THAT(r.grad_chosen, IsNear(Doubles(6, -.046257)));
  EXPECT_THAT(r.grad_rejected, IsNear(Doubles(5, .046257)));
  EXPECT_NEAR(r.reward_chosen[0], .1, kExact);
  EXPECT_NEAR(r.reward_rejected[0], -.05, kExact);
  EXPECT_EQ(r.accuracy, 1);
}

TEST(PreferenceLossTest, SmoothedDpoMatchesTheReference) {
  const Pair pair;
  ASSERT_OK_AND_ASSIGN(
      const auto r,
      PreferenceLoss(pair.Chosen(), pair.Rejected(), {.label_smoothing = .1}));
  EXPECT_NEAR(r.loss, .635957, kPrinted);
}

TEST(PreferenceLossTest, IpoMatchesTheReference) {
  const Pair pair;
  ASSERT_OK_AND_ASSIGN(
      const auto sums,
      PreferenceLoss(pair.Chosen(), pair.Rejected(),
                     {.kind = PreferenceKind::kIpo, .length_norm = false}));
  EXPECT_NEAR(sums.loss, 12.25, kPrinted);
  ASSERT_OK_AND_ASSIGN(const auto normed,
                       PreferenceLoss(pair.Chosen(), pair.Rejected(),
                                      {.kind = PreferenceKind::kIpo}));
  EXPECT_NEAR(normed.loss, 22.404444, kPrinted);
}

TEST(PreferenceLossTest, GradientIsTheDerivative) {
  for (const PreferenceKind kind :
       {PreferenceKind::kDpo, PreferenceKind::kIpo}) {
    const PreferenceOptions options{.kind = kind, .label_smoothing = .2};
    const Pair pair;
    const auto loss = [&](const Doubles& x) {
      Pair moved;
      moved.w = x;
      return PreferenceLoss(moved.Chosen(), moved.Rejected(), options)->loss;
    };
    ASSERT_OK_AND_ASSIGN(
        const auto r, PreferenceLoss(pair.Chosen(), pair.Rejected(), options));
    EXPECT_THAT(r.grad_chosen,
                IsNear(FiniteDifferences(loss, pair.w, pair.ones), 1e-7));
  }
}

TEST(PreferenceLossTest, EmptyCompletionIsAnError) {
  Pair pair;
  pair.ones.assign(6, 0);
  EXPECT_THAT(PreferenceLoss(pair.Chosen(), pair.Rejected(), {}),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("chosen.mask")));
}

TEST(PreferenceLossTest, HugeMarginsStayFinite) {
  Pair pair;
  pair.w.assign(6, -1e6);
  ASSERT_OK_AND_ASSIGN(const auto r,
                       PreferenceLoss(pair.Chosen(), pair.Rejected(), {}));
  EXPECT_NEAR(r.loss, .1 * (6e6 - 13 - .5), 1e-3);
}

TEST(KtoTest, MatchesTheReference) {
  const Doubles mismatch = {1.4};
  const Doubles mismatch_ref = {1.0};
  ASSERT_OK_AND_ASSIGN(const double z0,
                       KtoReferencePoint<double>(mismatch, mismatch_ref));
  EXPECT_NEAR(z0, .4, kExact);
  const Doubles policy = {-12, -15};
  const Doubles reference = {-13, -14.5};
  const MaskVector desirable = {1, 0};
  const KtoInput<double> input{policy, reference, desirable};
  ASSERT_OK_AND_ASSIGN(const auto r, KtoLoss(input, z0, {}));
  EXPECT_NEAR(r.loss, (.485004 + .477515) / 2, kPrinted);
  const auto loss = [&](const Doubles& x) {
    return KtoLoss(KtoInput<double>{x, reference, desirable}, z0, {})->loss;
  };
  EXPECT_THAT(r.grad, IsNear(FiniteDifferences(loss, policy, {1, 1}), 1e-8));
}

TEST(KtoTest, ReferencePointIsNeverNegative) {
  const Doubles mismatch = {-5};
  const Doubles mismatch_ref = {1};
  ASSERT_OK_AND_ASSIGN(const double z0,
                       KtoReferencePoint<double>(mismatch, mismatch_ref));
  EXPECT_EQ(z0, 0);
  ASSERT_OK_AND_ASSIGN(const double none, KtoReferencePoint<double>({}, {}));
  EXPECT_EQ(none, 0);
}

// ---- reward-model losses (§4)

const Doubles kScores = {1.2, .3, -.5, .1};

TEST(RmLossTest, PairwiseMatchesTheReference) {
  const std::vector<int64_t> ranks = {1, 2, 4, 3};
  const std::vector<int64_t> sizes = {4};
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RmPairwiseLoss<double>(kScores, ranks, sizes, {}));
  EXPECT_NEAR(r.loss, .367167, kPrinted);
  EXPECT_THAT(r.grad, IsNear({-.115543, -.078524, .136472, .057594}));
  EXPECT_EQ(r.pairs, 6);
  EXPECT_EQ(r.accuracy, 1);
}

TEST(RmLossTest, TiesAreDropped) {
  const std::vector<int64_t> ranks = {1, 2, 3, 3};
  const std::vector<int64_t> sizes = {4};
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RmPairwiseLoss<double>(kScores, ranks, sizes, {}));
  EXPECT_NEAR(r.loss, .353103, kPrinted);
  EXPECT_EQ(r.pairs, 5);
}

TEST(RmLossTest, PromptWithoutPairLeavesTheMean) {
  Doubles scores = kScores;
  scores.insert(scores.end(), {5, 6});
  const std::vector<int64_t> ranks = {1, 2, 4, 3, 1, 1};
  const std::vector<int64_t> sizes = {4, 2, 0};
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RmPairwiseLoss<double>(scores, ranks, sizes, {}));
  EXPECT_NEAR(r.loss, .367167, kPrinted);
  EXPECT_EQ(r.prompts, 1);
  EXPECT_EQ(r.grad[4], 0);
}

TEST(RmLossTest, EqualScoresCountAsWrong) {
  const Doubles scores = {1, 1};
  const std::vector<int64_t> ranks = {1, 2};
  const std::vector<int64_t> sizes = {2};
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RmPairwiseLoss<double>(scores, ranks, sizes, {}));
  EXPECT_EQ(r.accuracy, 0);
}

TEST(RmLossTest, MarginIsTakenFromTheDifference) {
  const Doubles scores = {1.5, .5};
  const std::vector<int64_t> ranks = {1, 2};
  const std::vector<int64_t> sizes = {2};
  // −log σ(1 − .25) + .1·(1.5 + .5)².
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RmPairwiseLoss<double>(scores, ranks, sizes,
                                              {.margin = .25, .center = .1}));
  EXPECT_NEAR(r.loss, std::log1p(std::exp(-.75)) + .4, kExact);
}

TEST(RmLossTest, GradientIsTheDerivativeWithMarginAndCentring) {
  const std::vector<int64_t> ranks = {2, 1, 2, 3};
  const std::vector<int64_t> sizes = {2, 2};
  const RmPairwiseOptions options{.margin = .3, .center = .2};
  const auto loss = [&](const Doubles& x) {
    return RmPairwiseLoss<double>(x, ranks, sizes, options)->loss;
  };
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RmPairwiseLoss<double>(kScores, ranks, sizes, options));
  EXPECT_THAT(r.grad,
              IsNear(FiniteDifferences(loss, kScores, {1, 1, 1, 1}), 1e-8));
}

TEST(RmLossTest, PartsAddUpToTheWhole) {
  const std::vector<int64_t> ranks = {2, 1, 2, 3};
  const std::vector<int64_t> sizes = {2, 2};
  const double total = static_cast<double>(CountRankedPrompts(ranks, sizes));
  ASSERT_OK_AND_ASSIGN(const auto whole,
                       RmPairwiseLoss<double>(kScores, ranks, sizes, {}));
  double sum = 0;
  const std::vector<int64_t> one = {2};
  for (int p = 0; p < 2; ++p) {
    ASSERT_OK_AND_ASSIGN(
        const auto part,
        RmPairwiseLoss<double>(std::span(kScores).subspan(2 * p, 2),
                               std::span(ranks).subspan(2 * p, 2), one, {},
                               total));
    sum += part.loss;
  }
  EXPECT_NEAR(sum, whole.loss, kExact);
}

TEST(RmLossTest, BestOfMatchesTheReference) {
  const std::vector<int64_t> best = {0};
  ASSERT_OK_AND_ASSIGN(const auto r,
                       RmBestOfLoss<double>({1, 4}, kScores, best));
  EXPECT_NEAR(r.loss, .653431, kPrinted);
  EXPECT_EQ(r.accuracy, 1);
  const auto loss = [&](const Doubles& x) {
    return RmBestOfLoss<double>({1, 4}, x, best)->loss;
  };
  EXPECT_THAT(r.grad,
              IsNear(FiniteDifferences(loss, kScores, {1, 1, 1, 1}), 1e-8));
}

// ---- log-probs and supervised loss (§1, §3, §10)

const Doubles kLogits = {2, 1, .5, -1, -1.5};

LogprobInput<double> OneToken(const Doubles& logits,
                              const std::vector<int64_t>& id,
                              const MaskVector& mask) {
  LogprobInput<double> input;
  input.shape = {1, 1};
  input.vocab = 5;
  input.logits = logits;
  input.ids = id;
  input.mask = mask;
  return input;
}

TEST(LogprobTest, MatchesTheReference) {
  const MaskVector one = {1};
  const Doubles plain = {-.513419, -1.513419, -2.013419, -3.513419, -4.013419};
  const Doubles cold = {-.320250, -1.748821, -2.463107, -4.605964, -5.320250};
  for (int64_t id = 0; id < 5; ++id) {
    const std::vector<int64_t> ids = {id};
    LogprobInput<double> input = OneToken(kLogits, ids, one);
    ASSERT_OK_AND_ASSIGN(const auto at_one, TokenLogprobs(input));
    EXPECT_NEAR(at_one.logprob[0], plain[id], kPrinted);
    input.temperature = .7;
    ASSERT_OK_AND_ASSIGN(const auto at_seven, TokenLogprobs(input));
    EXPECT_NEAR(at_seven.logprob[0], cold[id], kPrinted);
    EXPECT_NEAR(at_seven.entropy[0], .818579, kPrinted);
  }
}

TEST(LogprobTest, GradientIsTheDerivative) {
  const MaskVector one = {1};
  const std::vector<int64_t> ids = {3};
  const Doubles up = {1.3};
  const Doubles up_entropy = {-.4};
  const auto make = [&](const Doubles& z) {
    LogprobInput<double> input = OneToken(z, ids, one);
    input.temperature = .7;
    input.upstream = up;
    input.upstream_entropy = up_entropy;
    return input;
  };
  const auto objective = [&](const Doubles& z) {
    const auto r = TokenLogprobs(make(z));
    return 1.3 * r->logprob[0] - .4 * r->entropy[0];
  };
  ASSERT_OK_AND_ASSIGN(const auto r, TokenLogprobs(make(kLogits)));
  EXPECT_THAT(
      r.grad_logits,
      IsNear(FiniteDifferences(objective, kLogits, MaskVector(5, 1)), 1e-8));
}

TEST(LogprobTest, ForbiddenTokensHaveNoEntropyAndNoGradient) {
  Doubles z = kLogits;
  z[1] = -kInf;
  const MaskVector one = {1};
  const std::vector<int64_t> ids = {0};
  const Doubles up = {1};
  LogprobInput<double> input = OneToken(z, ids, one);
  input.upstream = up;
  input.upstream_entropy = up;
  ASSERT_OK_AND_ASSIGN(const auto r, TokenLogprobs(input));
  EXPECT_TRUE(std::isfinite(r.entropy[0]));
  EXPECT_EQ(r.grad_logits[1], 0);
}

TEST(LogprobTest, RejectsBrokenRows) {
  const MaskVector one = {1};
  const std::vector<int64_t> ids = {0};
  for (const Doubles& z : {Doubles{kNan, 1, 1, 1, 1}, Doubles{kInf, 1, 1, 1, 1},
                           Doubles(5, -kInf)}) {
    EXPECT_THAT(TokenLogprobs(OneToken(z, ids, one)),
                testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                  HasSubstr("logits")));
  }
  const std::vector<int64_t> outside = {5};
  EXPECT_THAT(
      TokenLogprobs(OneToken(kLogits, outside, one)),
      testing::StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ids")));
  // Under mask 0 nothing is read.
  const MaskVector zero = {0};
  const std::vector<int64_t> ignored = {-100};
  ASSERT_OK_AND_ASSIGN(
      const auto r, TokenLogprobs(OneToken(Doubles(5, kNan), ignored, zero)));
  EXPECT_EQ(r.logprob[0], 0);
}

TEST(SftLossTest, ShiftsAndIgnores) {
  // Position 0 scores label 2 (id 1); position 1 is ignored; the last row's
  // logits are never read.
  const Doubles logits = {0, 0, kNan, kNan, kNan, kNan};
  const std::vector<int64_t> labels = {0, 1, kIgnoredLabel};
  ASSERT_OK_AND_ASSIGN(const auto r,
                       SftLoss<double>({1, 3}, 2, logits, labels, 1));
  EXPECT_NEAR(r.loss, std::log(2), kExact);
  EXPECT_THAT(r.grad_logits, IsNear({.5, -.5, 0, 0, 0, 0}, kExact));
  EXPECT_EQ(r.tokens, 1);
}

TEST(SftLossTest, NothingToLearnIsZero) {
  const std::vector<int64_t> labels = {1, kIgnoredLabel};
  ASSERT_OK_AND_ASSIGN(const auto r,
                       SftLoss<double>({1, 2}, 2, Doubles(4, kNan), labels, 0));
  EXPECT_EQ(r.loss, 0);
  EXPECT_THAT(r.grad_logits, Each(0.0));
}

TEST(NllLossTest, IsTheMeanOverGlobalTokens) {
  const Doubles logprobs = {-1, kNan, -3};
  const MaskVector mask = {1, 0, 1};
  ASSERT_OK_AND_ASSIGN(const auto r,
                       NllLoss<double>({1, 3}, logprobs, mask, 8));
  EXPECT_NEAR(r.loss, .5, kExact);
  EXPECT_THAT(r.grad, IsNear({-.125, 0, -.125}, kExact));
}

}  // namespace
}  // namespace cox
