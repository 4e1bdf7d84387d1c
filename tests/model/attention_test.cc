// The attention backends against the formula written as loops: softmax(q k^T
// scale) v over the keys that a query may see (docs/algorithms.md §12, §13).

#include "lib/model/attention.h"

#include <cmath>

#include "ATen/ops/empty.h"
#include "ATen/ops/full.h"
#include "ATen/ops/ones.h"
#include "ATen/ops/where.h"
#include "ATen/ops/zeros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"

namespace cox {
namespace {

struct Case {
  int64_t batch = 2;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t queries = 5;
  int64_t keys = 5;
  int64_t dim = 6;
  bool causal = false;
  // Key j of batch row b is visible when j < visible[b]; empty = all.
  std::vector<int64_t> visible = {};
};

at::Tensor Random(const std::vector<int64_t>& shape, at::ScalarType dtype,
                  const char* stream) {
  at::Tensor out = at::empty(shape, at::kDouble);
  CounterRng rng(5, stream);
  for (int64_t i = 0; i < out.numel(); ++i) {
    out.data_ptr<double>()[i] = rng.NextNormal();
  }
  return out.to(dtype);
}

// One number after the other, as in a textbook.
std::vector<double> Reference(const Case& c,
                              const AttentionBackend::Input& heads) {
  const at::Tensor q = heads.q.to(at::kDouble).contiguous();
  const at::Tensor k = heads.k.to(at::kDouble).contiguous();
  const at::Tensor v = heads.v.to(at::kDouble).contiguous();
  auto at = [&](const at::Tensor& t, int64_t b, int64_t h, int64_t i,
                int64_t d) {
    return t.const_data_ptr<
        double>()[((b * t.size(1) + h) * t.size(2) + i) * c.dim + d];
  };
  std::vector<double> out;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv = h / (c.heads / c.kv_heads);
      for (int64_t i = 0; i < c.queries; ++i) {
        const int64_t most =
            c.visible.empty() ? c.keys : c.visible[static_cast<size_t>(b)];
        const int64_t end = c.causal ? std::min(most, i + 1) : most;
        std::vector<double> weight;
        double sum = 0;
        for (int64_t j = 0; j < end; ++j) {
          double score = 0;
          for (int64_t d = 0; d < c.dim; ++d) {
            score += at(q, b, h, i, d) * at(k, b, kv, j, d);
          }
          weight.push_back(std::exp(score * heads.scale));
          sum += weight.back();
        }
        for (int64_t d = 0; d < c.dim; ++d) {
          double value = 0;
          for (int64_t j = 0; j < end; ++j) {
            value += weight[static_cast<size_t>(j)] / sum * at(v, b, kv, j, d);
          }
          out.push_back(value);
        }
      }
    }
  }
  return out;
}

AttentionMask MaskOf(const Case& c, at::ScalarType dtype) {
  AttentionMask mask;
  if (c.visible.empty()) {
    mask.causal = c.causal;
    return mask;
  }
  at::Tensor visible = at::zeros({c.batch, 1, c.queries, c.keys}, at::kBool);
  for (int64_t b = 0; b < c.batch; ++b) {
    visible.select(0, b)
        .narrow(2, 0, c.visible[static_cast<size_t>(b)])
        .fill_(true);
  }
  if (c.causal) {
    visible =
        visible.logical_and(at::ones({c.queries, c.keys}, at::kBool).tril());
  }
  const auto options = at::TensorOptions().dtype(dtype);
  mask.bias =
      at::where(visible, at::zeros({}, options), at::full({}, -1e30, options));
  return mask;
}

TEST(ScaledAttentionTest, PlainAndFusedPathsFollowTheFormula) {
  const std::vector<Case> cases = {
      {},                                            // encoder, no padding
      {.causal = true},                              // decoder
      {.kv_heads = 4, .causal = true},               // one key head a head
      {.causal = true, .visible = {3, 5}},           // padded decoder
      {.queries = 7, .keys = 4},                     // cross-attention
      {.queries = 7, .keys = 4, .visible = {1, 4}},  // padded instruction
      {.batch = 1, .heads = 1, .kv_heads = 1, .queries = 1, .keys = 1},
      {.kv_heads = 1, .queries = 40, .keys = 40, .dim = 16, .causal = true}};
  for (size_t n = 0; n < cases.size(); ++n) {
    const Case& c = cases[n];
    for (at::ScalarType dtype : {at::kDouble, at::kFloat}) {
      AttentionBackend::Input heads;
      heads.q = Random({c.batch, c.heads, c.queries, c.dim}, dtype, "q");
      heads.k = Random({c.batch, c.kv_heads, c.keys, c.dim}, dtype, "k");
      heads.v = Random({c.batch, c.kv_heads, c.keys, c.dim}, dtype, "v");
      heads.scale = 1.0 / std::sqrt(static_cast<double>(c.dim));
      const std::vector<double> expected = Reference(c, heads);
      for (bool fused : {false, true}) {
        SCOPED_TRACE(::testing::Message()
                     << "case " << n << " fused " << fused << " double "
                     << (dtype == at::kDouble));
        AttentionShape shape{c.heads, c.kv_heads, c.dim, fused};
        const at::Tensor found = ScaledAttention(shape, heads, MaskOf(c, dtype))
                                     .to(at::kDouble)
                                     .contiguous();
        ASSERT_EQ(static_cast<size_t>(found.numel()), expected.size());
        const double tolerance = dtype == at::kDouble ? 1e-12 : 2e-6;
        for (size_t i = 0; i < expected.size(); ++i) {
          ASSERT_NEAR(found.const_data_ptr<double>()[i], expected[i], tolerance)
              << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace cox
