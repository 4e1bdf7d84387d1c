#include "lib/model/kernels.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/rng.h"

namespace cox {
namespace {

std::vector<float> Normals(size_t n, double scale, std::string_view stream) {
  CounterRng rng(7, stream);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(scale * rng.NextNormal());
  return out;
}

struct Reference {
  double log_sum = 0;
  double entropy = 0;
  std::vector<double> p;
};

Reference SoftmaxOf(const std::vector<float>& z) {
  double top = z[0];
  for (float x : z) top = std::max(top, double{x});
  double sum = 0;
  for (float x : z) sum += std::exp(double{x} - top);
  Reference out;
  out.log_sum = top + std::log(sum);
  for (float x : z) {
    const double log_p = double{x} - out.log_sum;
    out.p.push_back(std::exp(log_p));
    out.entropy -= std::exp(log_p) * log_p;
  }
  return out;
}

TEST(SoftmaxKernelTest, MatchesDoublePrecisionAtEverySize) {
  for (size_t n : {1, 2, 11, 16, 17, 33, 2048, 5001}) {
    for (double scale : {0.1, 3.0, 40.0}) {
      std::vector<float> z = Normals(n, scale, "z");
      const Reference expected = SoftmaxOf(z);
      float log_sum = 0, entropy = 0;
      const int64_t size = static_cast<int64_t>(n);
      SoftmaxStats(z.data(), size, &log_sum, &entropy);
      const double tolerance = 2e-6 * std::max(1.0, std::abs(expected.log_sum));
      EXPECT_NEAR(log_sum, expected.log_sum, tolerance) << n;
      EXPECT_NEAR(entropy, expected.entropy, 1e-4) << n << " " << scale;
      SoftmaxGradArgs args;
      args.n = size;
      args.target = size / 2;
      args.log_sum = log_sum;
      args.entropy = entropy;
      args.logprob_gradient = 0.7f;
      args.entropy_gradient = -0.3f;
      std::vector<float> dz = z;
      SoftmaxGradInPlace(dz.data(), args);
      for (size_t k = 0; k < n; ++k) {
        const double p = expected.p[k];
        double want = -0.7 * p;
        if (p > 0) want += 0.3 * p * (std::log(p) + expected.entropy);
        if (k == n / 2) want += 0.7;
        EXPECT_NEAR(dz[k], want, 3e-5) << n << " at " << k;
      }
    }
  }
}

TEST(SoftmaxKernelTest, HugeSpreadStaysFinite) {
  std::vector<float> z = {-3e38f, 0.0f, 90.0f, -200.0f};
  float log_sum = 0, entropy = 0;
  SoftmaxStats(z.data(), 4, &log_sum, &entropy);
  EXPECT_EQ(log_sum, 90.0f);
  EXPECT_NEAR(entropy, 0.0f, 1e-6);
}

TEST(DecodeAttentionKernelTest, MatchesTheFormulaForEveryShape) {
  for (int64_t head_dim : {4, 6, 16, 40}) {
    for (int64_t length : {1, 3, 16, 63, 64, 65, 130}) {
      const int64_t heads = 4, kv_heads = 2;
      CacheShape shape{kv_heads, head_dim, RoundUp(length, 64),
                       RoundUp(head_dim, 16)};
      std::vector<float> keys(
          static_cast<size_t>(kv_heads * head_dim * shape.capacity));
      std::vector<float> values(
          static_cast<size_t>(kv_heads * shape.capacity * shape.padded_dim));
      const size_t width = static_cast<size_t>(kv_heads * head_dim);
      const std::vector<float> k =
          Normals(width * static_cast<size_t>(length), 1.0, "k");
      const std::vector<float> v =
          Normals(width * static_cast<size_t>(length), 1.0, "v");
      const std::vector<float> q =
          Normals(static_cast<size_t>(heads * head_dim), 1.0, "q");
      for (int64_t p = 0; p < length; ++p) {
        const size_t at = static_cast<size_t>(p) * width;
        AppendToCache(shape, p, k.data() + at, v.data() + at, keys.data(),
                      values.data());
      }
      std::vector<float> out(q.size(), -1.0f);
      std::vector<float> scratch(static_cast<size_t>(shape.capacity));
      DecodeAttentionArgs args;
      args.shape = shape;
      args.heads = heads;
      args.length = length;
      args.scale = 0.5f;
      args.keys = keys.data();
      args.values = values.data();
      args.q = q.data();
      args.scratch = scratch.data();
      args.out = out.data();
      AttendToCache(args);
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<float> scores;
        auto at = [&](int64_t p, int64_t d) {
          return static_cast<size_t>(p) * width +
                 static_cast<size_t>(h / 2 * head_dim + d);
        };
        for (int64_t p = 0; p < length; ++p) {
          double dot = 0;
          for (int64_t d = 0; d < head_dim; ++d) {
            dot += double{q[static_cast<size_t>(h * head_dim + d)]} *
                   double{k[at(p, d)]};
          }
          scores.push_back(static_cast<float>(0.5 * dot));
        }
        const Reference softmax = SoftmaxOf(scores);
        for (int64_t d = 0; d < head_dim; ++d) {
          double want = 0;
          for (int64_t p = 0; p < length; ++p) {
            want += softmax.p[static_cast<size_t>(p)] * double{v[at(p, d)]};
          }
          EXPECT_NEAR(out[static_cast<size_t>(h * head_dim + d)], want, 5e-6);
        }
      }
    }
  }
}

}  // namespace
}  // namespace cox
