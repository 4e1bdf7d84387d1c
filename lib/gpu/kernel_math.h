#ifndef COX_LIB_GPU_KERNEL_MATH_H_
#define COX_LIB_GPU_KERNEL_MATH_H_

// The arithmetic of the fused kernels beside sampling (sample_math.h). T is
// float or Bf16; everything is computed in float32 and rounded once. What each
// one must agree with is named; tests/gpu compares.

#include <cmath>
#include <cstdint>

#include "lib/gpu/block.h"

namespace cox::gpu {

// bfloat16, rounded to nearest even; NaN stays NaN.
struct Bf16 {
  uint16_t bits;
};
COX_HD float ToFloat(float x) { return x; }
COX_HD float ToFloat(Bf16 x) {
  union {
    uint32_t u;
    float f;
  } word;
  word.u = uint32_t{x.bits} << 16;
  return word.f;
}
COX_HD void Store(float x, float* out) { *out = x; }
COX_HD void Store(float x, Bf16* out) {
  union {
    float f;
    uint32_t u;
  } word;
  word.f = x;
  const uint32_t rounded = word.u + 0x7fffu + ((word.u >> 16) & 1u);
  const bool nan = (word.u & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>((nan ? word.u | 0x400000u : rounded) >> 16);
}

// RmsNorm of lib/model/layers.h for one row of `n`: x / sqrt(mean(x²) + eps),
// then times the weight.
template <typename Block, typename T>
COX_HD void RmsNormRow(const Block& block, const T* x, const float* weight,
                       int64_t n, float eps, T* out) {
  float own = 0;
  for (int64_t i = block.rank(); i < n; i += block.threads()) {
    const float v = ToFloat(x[i]);
    own += v * v;
  }
  const float mean = block.Sum(own) / static_cast<float>(n);
  const float inverse = 1.0f / sqrtf(mean + eps);
  for (int64_t i = block.rank(); i < n; i += block.threads()) {
    Store(ToFloat(x[i]) * inverse * weight[i], &out[i]);
  }
}

// Caches of one layer: keys and values [slots, kv_heads, capacity, head_dim].
// Row r of a decode step writes slot r at positions[r].
template <typename T>
struct CacheView {
  T* keys;
  T* values;
  int64_t kv_heads;
  int64_t capacity;
  int64_t head_dim;
};
template <typename T>
COX_HD T* CacheAt(T* base, const CacheView<T>& cache, int64_t slot,
                  int64_t head, int64_t position) {
  return base + ((slot * cache.kv_heads + head) * cache.capacity + position) *
                    cache.head_dim;
}

// Rotate of lib/model/layers.h for the pair (i, i + half) of one head: x cos +
// rotate_half(x) sin. cos, sin [head_dim] of the row's position.
template <typename T>
COX_HD void RotatePair(const T* x, int64_t i, int64_t half, const float* cos,
                       const float* sin, T* out) {
  const float a = ToFloat(x[i]);
  const float b = ToFloat(x[i + half]);
  Store(a * cos[i] + -b * sin[i], &out[i]);
  Store(b * cos[i + half] + a * sin[i + half], &out[i + half]);
}

// One row: queries rotated in place, keys rotated into the cache, values copied
// into it. q [heads * head_dim], k and v [kv_heads * head_dim]; cos null: no
// rotary positions.
template <typename T>
struct RotaryRow {
  T* q;
  const T* k;
  const T* v;
  const float* cos;
  const float* sin;
  int64_t heads;
  int64_t slot;
  int64_t position;
};
template <typename Block, typename T>
COX_HD void RotateAndCache(const Block& block, const RotaryRow<T>& row,
                           const CacheView<T>& cache) {
  const int64_t dim = cache.head_dim;
  const int64_t half = dim / 2;
  const int64_t pairs = (row.heads + cache.kv_heads) * half;
  for (int64_t p = block.rank(); p < pairs; p += block.threads()) {
    const int64_t head = p / half;
    const int64_t i = p % half;
    const bool query = head < row.heads;
    const int64_t kv = head - row.heads;
    const T* from = query ? row.q + head * dim : row.k + kv * dim;
    T* to = query ? row.q + head * dim
                  : CacheAt(cache.keys, cache, row.slot, kv, row.position);
    if (row.cos != nullptr) {
      RotatePair(from, i, half, row.cos, row.sin, to);
    } else {
      to[i] = from[i];
      to[i + half] = from[i + half];
    }
  }
  const int64_t width = cache.kv_heads * dim;
  for (int64_t i = block.rank(); i < width; i += block.threads()) {
    CacheAt(cache.values, cache, row.slot, i / dim, row.position)[i % dim] =
        row.v[i];
  }
}

// AttendToCache of lib/model/kernels.h for one query head: out = softmax(scale
// q K) V over `length` >= 1 positions. keys, values [capacity, head_dim];
// `scores` [length] is shared by the block's threads.
template <typename T>
struct AttendArgs {
  const T* q;
  const T* keys;
  const T* values;
  int64_t length;
  int64_t head_dim;
  float scale;
  float* scores;
  T* out;
};
template <typename Block, typename T>
COX_HD void AttendHead(const Block& block, const AttendArgs<T>& args) {
  float own_top = -INFINITY;
  for (int64_t p = block.rank(); p < args.length; p += block.threads()) {
    const T* key = args.keys + p * args.head_dim;
    float score = 0;
    for (int64_t d = 0; d < args.head_dim; ++d) {
      score += ToFloat(args.q[d]) * ToFloat(key[d]);
    }
    score *= args.scale;
    args.scores[p] = score;
    own_top = score > own_top ? score : own_top;
  }
  const float top = block.Max(own_top);
  float own_sum = 0;
  for (int64_t p = block.rank(); p < args.length; p += block.threads()) {
    const float e = expf(args.scores[p] - top);
    args.scores[p] = e;
    own_sum += e;
  }
  const float inverse = 1.0f / block.Sum(own_sum);
  block.Sync();  // all scores are written
  for (int64_t d = block.rank(); d < args.head_dim; d += block.threads()) {
    float sum = 0;
    for (int64_t p = 0; p < args.length; ++p) {
      sum += args.scores[p] * ToFloat(args.values[p * args.head_dim + d]);
    }
    Store(sum * inverse, &args.out[d]);
  }
}

// One element of AdamUpdate (lib/algo/optim.h); the factors are AdamFactors.
// `copy`: the bfloat16 weight, or null.
template <typename Factors>
COX_HD void AdamElement(const Factors& f, float grad, float* p, float* m,
                        float* v, Bf16* copy) {
  const float g = grad * f.grad_scale;
  const float m_i = f.beta1 * *m + f.take1 * g;
  const float v_i = f.beta2 * *v + f.take2 * g * g;
  const float root = sqrtf(v_i) * f.root_scale + f.eps;
  const float divisor = root > 1.17549435e-38f ? root : 1.17549435e-38f;
  *m = m_i;
  *v = v_i;
  *p = *p * f.keep - f.rate * (m_i / divisor);
  if (copy != nullptr) Store(*p, copy);
}

// A block's share of Σ g², in float64: block b of `blocks` takes the elements
// b * threads + rank, + blocks * threads, ...
template <typename Block>
COX_HD double SquaresOf(const Block& block, const float* g, int64_t n,
                        int64_t b, int64_t blocks) {
  double own = 0;
  for (int64_t i = b * block.threads() + block.rank(); i < n;
       i += blocks * block.threads()) {
    own += static_cast<double>(g[i]) * static_cast<double>(g[i]);
  }
  return block.Sum(own);
}

}  // namespace cox::gpu

#endif  // COX_LIB_GPU_KERNEL_MATH_H_
