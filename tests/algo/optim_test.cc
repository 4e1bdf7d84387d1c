#include "lib/algo/optim.h"

#include "tests/algo/numeric.h"

namespace cox {
namespace {

TEST(LrScheduleTest, LinearCountsFromTheFullRate) {
  LrSchedule schedule{.kind = LrKind::kLinear, .peak = 2, .total = 4};
  // Update k of N (from 1) uses 1 − (k−1)/N.
  EXPECT_NEAR(schedule.At(0), 2, kExact);
  EXPECT_NEAR(schedule.At(3), .5, kExact);
  EXPECT_NEAR(schedule.At(9), 0, kExact);
}

TEST(LrScheduleTest, CosineMatchesTheReference) {
  LrSchedule schedule{
      .kind = LrKind::kCosine, .peak = 1, .total = 4, .floor = .1};
  const double expected[] = {1, .868198, .55, .231802, .1};
  for (int k = 0; k < 5; ++k) {
    EXPECT_NEAR(schedule.At(k), expected[k], kPrinted);
  }
}

TEST(LrScheduleTest, WarmupMatchesTheReference) {
  LrSchedule schedule{.peak = 1, .warmup = 10};
  EXPECT_NEAR(schedule.At(0), .1, kExact);
  EXPECT_NEAR(schedule.At(1), .19, kExact);
  EXPECT_NEAR(schedule.At(5), .55, kExact);
  EXPECT_NEAR(schedule.At(10), 1, kExact);
}

double FirstStep(AdamKind kind) {
  const AdamOptions options{.kind = kind, .eps = 1e-5};
  Doubles p = {0};
  const Doubles g = {1e-4};
  Doubles m = {0};
  Doubles v = {0};
  AdamUpdate<double>(options, {.step = 1, .lr = 1e-5}, p, g, m, v);
  return -p[0];
}

TEST(AdamTest, FirstStepsMatchTheReference) {
  EXPECT_NEAR(FirstStep(AdamKind::kAdamW), 9.090909e-6, 1e-12);
  EXPECT_NEAR(FirstStep(AdamKind::kTfAdam), 2.402531e-6, 1e-12);
}

TEST(AdamTest, DecoupledDecayMatchesTheReference) {
  const AdamOptions options{
      .beta1 = .9, .beta2 = .95, .eps = 1e-8, .weight_decay = .1};
  Doubles p = {1};
  Doubles m = {0};
  Doubles v = {0};
  AdamUpdate<double>(options, {.step = 1, .lr = .01}, p, Doubles{.5}, m, v);
  EXPECT_NEAR(p[0], .98900000, 1e-8);
  AdamUpdate<double>(options, {.step = 2, .lr = .01}, p, Doubles{-.1}, m, v);
  EXPECT_NEAR(p[0], .98284036, 1e-8);
}

TEST(AdamTest, RangesWithoutDecayKeepTheirSize) {
  const AdamOptions options{.weight_decay = .5};
  Doubles p = {1};
  Doubles m = {0};
  Doubles v = {0};
  AdamUpdate<double>(options, {.step = 1, .lr = .1, .decay = false}, p,
                     Doubles{0}, m, v);
  EXPECT_EQ(p[0], 1);
}

TEST(AdamTest, NoGradientAndNoEpsStaysPut) {
  Doubles p = {1};
  Doubles m = {0};
  Doubles v = {0};
  AdamUpdate<double>({.eps = 0}, {.step = 1, .lr = .1}, p, Doubles{0}, m, v);
  EXPECT_EQ(p[0], 1);
}

// The vectorised loop against the formula of §11, many steps, odd size.
TEST(AdamTest, FloatLoopAgreesWithThePlainFormula) {
  constexpr int kSize = 37;
  const AdamOptions options{
      .beta1 = .9, .beta2 = .95, .eps = 1e-5, .weight_decay = .01};
  CounterRng rng(5, "adam");
  Doubles p = Normals(rng, kSize);
  Doubles m(kSize, 0.0);
  Doubles v(kSize, 0.0);
  std::vector<float> pf = ToFloats(p);
  std::vector<float> mf(kSize, 0);
  std::vector<float> vf(kSize, 0);
  const double lr = 1e-2;
  for (int t = 1; t <= 20; ++t) {
    const std::vector<float> gf = ToFloats(Normals(rng, kSize, 0, .1));
    AdamUpdate<float>(options, {.step = t, .lr = lr, .grad_scale = .5}, pf, gf,
                      mf, vf);
    for (int i = 0; i < kSize; ++i) {
      const double g = .5 * static_cast<double>(gf[i]);
      p[i] -= lr * .01 * p[i];
      m[i] = .9 * m[i] + .1 * g;
      v[i] = .95 * v[i] + .05 * g * g;
      const double m_hat = m[i] / (1 - std::pow(.9, t));
      const double v_hat = v[i] / (1 - std::pow(.95, t));
      p[i] -= lr * m_hat / (std::sqrt(v_hat) + 1e-5);
    }
  }
  EXPECT_THAT(pf, IsNear(p, 1e-5));
}

TEST(ClipTest, MatchesTheReference) {
  const Doubles a = {3, 4};
  const Doubles b = {12};
  const std::span<const double> ranges[] = {a, b};
  const double norm = GlobalNorm<double>(ranges);
  EXPECT_NEAR(norm, 13, kExact);
  EXPECT_NEAR(std::sqrt(SquaredNorm<double>(a) + SquaredNorm<double>(b)), 13,
              kExact);
  const ClipDecision clip = ClipScale(norm, 1);
  EXPECT_NEAR(3 * clip.scale, .230769, kPrinted);
  EXPECT_NEAR(4 * clip.scale, .307692, kPrinted);
  EXPECT_NEAR(12 * clip.scale, .923077, kPrinted);
  EXPECT_EQ(ClipScale(.5, 1).scale, 1);
}

TEST(ClipTest, NonFiniteNormSkipsTheStep) {
  for (const double bad : {kNan, kInf, -kInf}) {
    const Doubles g = {1, bad, 2};
    const std::span<const double> ranges[] = {g};
    EXPECT_TRUE(ClipScale(GlobalNorm<double>(ranges), 1).skip);
    EXPECT_TRUE(ClipScale(std::sqrt(SquaredNorm<double>(g)), 1).skip);
  }
}

TEST(ClipTest, NormOfExtremeDoublesDoesNotOverflow) {
  const Doubles large = {3e200, 4e200};
  const Doubles small = {3e-200, 4e-200};
  const std::span<const double> up[] = {large};
  const std::span<const double> down[] = {small};
  EXPECT_NEAR(GlobalNorm<double>(up) / 5e200, 1, kExact);
  EXPECT_NEAR(GlobalNorm<double>(down) / 5e-200, 1, kExact);
}

TEST(SquaredNormTest, TailAndLanesAreAllCounted) {
  for (size_t n : {0, 1, 15, 16, 17, 40}) {
    EXPECT_EQ(SquaredNorm<float>(std::vector<float>(n, 2)),
              4.0 * static_cast<double>(n));
  }
}

TEST(EmaTest, MatchesTheReference) {
  Doubles shadow = {1};
  const Doubles theta = {2};
  for (const double expected : {1.008, 1.015936, 1.023808512}) {
    EmaUpdate<double>(.992, shadow, theta);
    EXPECT_NEAR(shadow[0], expected, kExact);
  }
}

TEST(DecayTest, OnlyInnerMatricesDecay) {
  const auto decays = [](std::string_view name, std::vector<int64_t> shape) {
    return HasWeightDecay(name, shape);
  };
  EXPECT_TRUE(decays("h.0.attn.c_attn.weight", {8, 24}));
  EXPECT_TRUE(decays("model.layers.0.mlp.up_proj.weight", {12, 8}));
  EXPECT_TRUE(decays("lm_head.weight", {11, 8}));
  EXPECT_FALSE(decays("h.0.attn.c_attn.bias", {24}));
  EXPECT_FALSE(decays("model.norm.weight", {8}));
  EXPECT_FALSE(decays("wte.weight", {11, 8}));
  EXPECT_FALSE(decays("transformer.wpe.weight", {16, 8}));
  EXPECT_FALSE(decays("model.embed_tokens.weight", {11, 8}));
  EXPECT_FALSE(decays("encoder.embed_positions.weight", {16, 8}));
  EXPECT_FALSE(decays("score.weight", {1, 8}));
}

}  // namespace
}  // namespace cox
