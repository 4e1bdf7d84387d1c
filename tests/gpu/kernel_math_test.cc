// The arithmetic of the fused kernels, run by threads of the host.

#include "lib/gpu/kernel_math.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "lib/algo/optim.h"
#include "lib/base/rng.h"
#include "tests/gpu/host_block.h"

namespace cox::gpu {
namespace {

std::vector<float> Normals(size_t n, const char* stream) {
  CounterRng rng(5, stream);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(rng.NextNormal());
  return out;
}
std::vector<Bf16> Rounded(const std::vector<float>& values) {
  std::vector<Bf16> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) Store(values[i], &out[i]);
  return out;
}

TEST(Bf16Test, RoundsToNearestEven) {
  const auto round = [](float x) {
    Bf16 out;
    Store(x, &out);
    return ToFloat(out);
  };
  EXPECT_EQ(round(1.0f), 1.0f);
  EXPECT_EQ(round(1.0f + 0x1.0p-8f), 1.0f);              // tie, even below
  EXPECT_EQ(round(1.0f + 0x1.8p-7f), 1.0f + 0x1.0p-6f);  // tie, even above
  EXPECT_EQ(round(1.0f + 0x1.1p-8f), 1.0f + 0x1.0p-7f);  // above the tie
  EXPECT_EQ(round(-3.4e38f), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(round(std::nanf(""))));
}

TEST(RmsNormTest, MatchesTheFormula) {
  const std::vector<float> x = Normals(100, "x"), w = Normals(100, "w");
  double mean = 0;
  for (float v : x) mean += double{v} * double{v} / 100;
  for (int threads : {1, 4}) {
    std::vector<float> out(100);
    RunBlock(threads, [&](const HostBlock& block) {
      RmsNormRow(block, x.data(), w.data(), 100, 1e-5f, out.data());
    });
    for (size_t i = 0; i < 100; ++i) {
      EXPECT_NEAR(out[i], double{x[i]} / std::sqrt(mean + 1e-5) * double{w[i]},
                  2e-6);
    }
  }
}

// Heads, positions and dimensions of a small attention.
constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 6, kCapacity = 9;

TEST(RotateAndCacheTest, WritesOnlyItsSlotAndPosition) {
  std::vector<float> q = Normals(kHeads * kDim, "q");
  const std::vector<float> q0 = q, k = Normals(kKvHeads * kDim, "k"),
                           v = Normals(kKvHeads * kDim, "v"),
                           angles = Normals(kDim / 2, "angles");
  std::vector<float> cos(kDim), sin(kDim);
  for (size_t i = 0; i < kDim; ++i) {
    cos[i] = std::cos(angles[i % (kDim / 2)]);
    sin[i] = std::sin(angles[i % (kDim / 2)]);
  }
  const size_t size = 2 * kKvHeads * kCapacity * kDim;
  std::vector<float> keys(size, 7.0f), values(size, 8.0f);
  const CacheView<float> cache = {keys.data(), values.data(), kKvHeads,
                                  kCapacity, kDim};
  RunBlock(3, [&](const HostBlock& block) {
    RotateAndCache(block,
                   RotaryRow<float>{q.data(), k.data(), v.data(), cos.data(),
                                    sin.data(), kHeads, /*slot=*/1,
                                    /*position=*/4},
                   cache);
  });
  // x cos + (-second half, first half) sin.
  const auto rotated = [&](const std::vector<float>& x, int64_t head,
                           int64_t d) {
    const int64_t half = kDim / 2;
    const float turned =
        d < half ? -x[head * kDim + d + half] : x[head * kDim + d - half];
    return x[head * kDim + d] * cos[d] + turned * sin[d];
  };
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t d = 0; d < kDim; ++d) {
      EXPECT_NEAR(q[h * kDim + d], rotated(q0, h, d), 1e-6);
    }
  }
  for (int64_t i = 0; i < static_cast<int64_t>(size); ++i) {
    const int64_t d = i % kDim, p = i / kDim % kCapacity;
    const int64_t h = i / kDim / kCapacity % kKvHeads;
    const int64_t slot = i / kDim / kCapacity / kKvHeads;
    const bool written = slot == 1 && p == 4;
    EXPECT_NEAR(keys[i], written ? rotated(k, h, d) : 7.0f, 1e-6);
    EXPECT_EQ(values[i], written ? v[h * kDim + d] : 8.0f);
  }
}

TEST(AttendHeadTest, MatchesTheFormulaInBothTypes) {
  const std::vector<float> q = Normals(kDim, "q"),
                           keys = Normals(kCapacity * kDim, "keys"),
                           values = Normals(kCapacity * kDim, "values");
  const int64_t length = 7;
  const float scale = 0.4f;
  const auto expected = [&](auto at) {
    std::vector<double> weight(length), out(kDim, 0.0);
    double total = 0;
    for (int64_t p = 0; p < length; ++p) {
      double score = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        score += at(q, d) * at(keys, p * kDim + d);
      }
      total += weight[p] = std::exp(double{scale} * score);
    }
    for (int64_t p = 0; p < length; ++p) {
      for (int64_t d = 0; d < kDim; ++d) {
        out[d] += weight[p] / total * at(values, p * kDim + d);
      }
    }
    return out;
  };
  const auto wide = expected(
      [](const std::vector<float>& x, int64_t i) { return double{x[i]}; });
  const auto narrow = expected([](const std::vector<float>& x, int64_t i) {
    Bf16 b;
    Store(x[i], &b);
    return double{ToFloat(b)};
  });
  std::vector<float> scores(length), out(kDim);
  const std::vector<Bf16> q16 = Rounded(q), k16 = Rounded(keys),
                          v16 = Rounded(values);
  std::vector<Bf16> out16(kDim);
  RunBlock(3, [&](const HostBlock& block) {
    AttendHead(block,
               AttendArgs<float>{q.data(), keys.data(), values.data(), length,
                                 kDim, scale, scores.data(), out.data()});
  });
  for (int64_t d = 0; d < kDim; ++d) EXPECT_NEAR(out[d], wide[d], 1e-6);
  RunBlock(3, [&](const HostBlock& block) {
    AttendHead(block,
               AttendArgs<Bf16>{q16.data(), k16.data(), v16.data(), length,
                                kDim, scale, scores.data(), out16.data()});
  });
  for (int64_t d = 0; d < kDim; ++d) {
    EXPECT_NEAR(ToFloat(out16[d]), narrow[d], 0.01);
  }
}

TEST(AdamElementTest, HasTheBitsOfTheHostOptimizerAndRoundsTheCopy) {
  for (AdamKind kind : {AdamKind::kAdamW, AdamKind::kTfAdam}) {
    AdamOptions options;
    options.kind = kind;
    options.weight_decay = 0.1;
    std::vector<float> p = Normals(64, "p"), m(64, 0.0f), v(64, 0.0f);
    std::vector<float> p2 = p, m2 = m, v2 = v;
    std::vector<Bf16> copy(64);
    for (int64_t t = 1; t <= 3; ++t) {
      const std::vector<float> g = Normals(64, t == 1 ? "a" : "b");
      const AdamStep step = {.step = t, .lr = 1e-2, .grad_scale = 0.5};
      AdamUpdate<float>(options, step, p, g, m, v);
      const AdamFactors<float> factors = AdamFactorsOf<float>(options, step);
      for (size_t i = 0; i < 64; ++i) {
        AdamElement(factors, g[i], &p2[i], &m2[i], &v2[i], &copy[i]);
      }
    }
    EXPECT_EQ(p2, p);
    EXPECT_EQ(m2, m);
    EXPECT_EQ(v2, v);
    for (size_t i = 0; i < 64; ++i) {
      EXPECT_NEAR(ToFloat(copy[i]), p[i], std::abs(p[i]) / 256);
    }
  }
}

TEST(SquaresTest, BlocksCoverEveryElementOnce) {
  const std::vector<float> g = Normals(1000, "g");
  double total = 0;
  for (int64_t b = 0; b < 3; ++b) {
    double share = 0;
    RunBlock(4, [&](const HostBlock& block) {
      const double sum = SquaresOf(block, g.data(), 1000, b, 3);
      if (block.rank() == 0) share = sum;
    });
    total += share;
  }
  const double expected = SquaredNorm(std::span<const float>(g));
  EXPECT_NEAR(total, expected, 1e-9 * expected);
}

}  // namespace
}  // namespace cox::gpu
