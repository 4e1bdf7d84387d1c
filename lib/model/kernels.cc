#include "lib/model/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// One body, several instruction sets. Helpers are inlined into each clone and
// take vectors by reference: passing 64-byte vectors by value has no baseline
// calling convention. Feature names, not "arch=": that form asks for one
// maker's CPU. Sanitizers cannot run the resolvers.
#if defined(__x86_64__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define COX_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define COX_CLONES
#endif
#define COX_INLINE inline __attribute__((always_inline))

namespace cox {
namespace {

constexpr int64_t kLanes = 16;
typedef float Vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t IntVec __attribute__((vector_size(64), aligned(4)));
typedef uint32_t WordVec __attribute__((vector_size(64), aligned(4)));
typedef uint64_t LongVec __attribute__((vector_size(64), aligned(4)));

// Below this exp() is 0; also what stands for a lane without a number.
constexpr float kNoScore = -1e30f;

COX_INLINE void Splat(float x, Vec& out) { out = Vec{} + x; }

COX_INLINE void Load(const float* p, Vec& out) {
  std::memcpy(&out, p, sizeof(out));
}
COX_INLINE void Store(const Vec& v, float* p) { std::memcpy(p, &v, sizeof(v)); }

COX_INLINE float Sum(const Vec& v) {
  float s[kLanes];
  std::memcpy(s, &v, sizeof(s));
  for (int64_t w = kLanes / 2; w > 0; w /= 2) {
    for (int64_t i = 0; i < w; ++i) s[i] += s[i + w];
  }
  return s[0];
}
COX_INLINE float Max(const Vec& v) {
  float m = v[0];
  for (int64_t i = 1; i < kLanes; ++i) m = std::max(m, v[i]);
  return m;
}

// exp for x <= 88, relative error below 2e-7 (Cephes expf); 0 below -87.
COX_INLINE void Exp(const Vec& x, Vec& out) {
  Vec magic, low;
  Splat(12582912.0f, magic);  // 1.5 * 2^23: adding it rounds to an integer
  Splat(-87.0f, low);
  const IntVec keep = x > low;
  const Vec bounded = keep ? x : low;
  const Vec shifted = bounded * 1.44269504088896341f + magic;
  const Vec n = shifted - magic;
  const Vec r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = Vec{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IntVec bits, bias;
  std::memcpy(&bits, &shifted, sizeof(bits));
  std::memcpy(&bias, &magic, sizeof(bias));
  bits = (bits - bias + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  const Vec zero = {};
  out = keep ? p * scale : zero;
}

COX_INLINE void LoadTail(const float* p, int64_t count, Vec& out) {
  Splat(kNoScore, out);
  std::memcpy(&out, p, static_cast<size_t>(count) * sizeof(float));
}

// Both halves of x times `multiplier`, lane by lane; even and odd lanes are
// products of 64 bits each.
COX_INLINE void MultiplyWords(const WordVec& x, uint64_t multiplier,
                              WordVec& high, WordVec& low) {
  LongVec pairs, joined;
  std::memcpy(&pairs, &x, sizeof(pairs));
  const LongVec mask = LongVec{} + 0xffffffffu;
  const LongVec even = (pairs & mask) * (LongVec{} + multiplier);
  const LongVec odd = (pairs >> 32) * (LongVec{} + multiplier);
  joined = (even & mask) | (odd << 32);
  std::memcpy(&low, &joined, sizeof(low));
  joined = (even >> 32) | (odd & ~mask);
  std::memcpy(&high, &joined, sizeof(high));
}

// Philox 4x32-10 of 16 counters, in place.
COX_INLINE void PhiloxBlocks(uint64_t key, WordVec (&words)[4]) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    WordVec high0, low0, high1, low1;
    MultiplyWords(words[0], 0xD2511F53, high0, low0);
    MultiplyWords(words[2], 0xCD9E8D57, high1, low1);
    words[0] = high1 ^ words[1] ^ key0;
    words[1] = low1;
    words[2] = high0 ^ words[3] ^ key1;
    words[3] = low0;
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
}

}  // namespace

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

COX_CLONES
void SoftmaxStats(const float* z, int64_t n, float* log_sum, float* entropy) {
  const int64_t whole = n / kLanes * kLanes;
  Vec x, top;
  LoadTail(z + whole, n - whole, top);
  for (int64_t i = 0; i < whole; i += kLanes) {
    Load(z + i, x);
    top = x > top ? x : top;
  }
  const float max = Max(top);
  Vec total = {}, weighted = {}, e;
  for (int64_t i = 0; i < n; i += kLanes) {
    if (i < whole) {
      Load(z + i, x);
    } else {
      LoadTail(z + i, n - i, x);
    }
    x = x - max;
    Exp(x, e);
    total += e;
    weighted += e * x;
  }
  const float sum = Sum(total);
  const float log_total = std::log(sum);
  *log_sum = max + log_total;
  // H = log s - Σ p (z - max).
  if (entropy != nullptr) *entropy = log_total - Sum(weighted) / sum;
}

COX_CLONES
void SoftmaxGradInPlace(float* z, const SoftmaxGradArgs& args) {
  const float g = args.logprob_gradient;
  const float e = args.entropy_gradient;
  for (int64_t i = 0; i < args.n; i += kLanes) {
    const int64_t count = std::min(kLanes, args.n - i);
    Vec x, p;
    if (count == kLanes) {
      Load(z + i, x);
    } else {
      LoadTail(z + i, count, x);
    }
    x = x - args.log_sum;
    Exp(x, p);
    x = -p * (g + e * (x + args.entropy));
    if (count == kLanes) {
      Store(x, z + i);
    } else {
      std::memcpy(z + i, &x, static_cast<size_t>(count) * sizeof(float));
    }
  }
  z[args.target] += g;
}

void AppendToCache(const CacheShape& shape, int64_t position, const float* k,
                   const float* v, float* keys, float* values) {
  for (int64_t h = 0; h < shape.kv_heads; ++h) {
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      keys[(h * shape.head_dim + d) * shape.capacity + position] =
          k[h * shape.head_dim + d];
    }
    std::memcpy(values + (h * shape.capacity + position) * shape.padded_dim,
                v + h * shape.head_dim,
                static_cast<size_t>(shape.head_dim) * sizeof(float));
  }
}

COX_CLONES
void AttendToCache(const DecodeAttentionArgs& args) {
  const CacheShape& shape = args.shape;
  const int64_t group = args.heads / shape.kv_heads;
  constexpr int64_t kBlock = 4 * kLanes;
  for (int64_t h = 0; h < args.heads; ++h) {
    const float* q = args.q + h * shape.head_dim;
    const float* keys = args.keys + h / group * shape.head_dim * shape.capacity;
    const float* values =
        args.values + h / group * shape.capacity * shape.padded_dim;
    Vec top;
    Splat(kNoScore, top);
    for (int64_t p = 0; p < args.length; p += kBlock) {
      Vec s[4] = {}, k;
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        for (int64_t u = 0; u < 4; ++u) {
          Load(keys + d * shape.capacity + p + u * kLanes, k);
          s[u] += k * q[d];
        }
      }
      for (int64_t u = 0; u < 4; ++u) {
        s[u] = s[u] * args.scale;
        const int64_t visible = args.length - (p + u * kLanes);
        for (int64_t i = std::max<int64_t>(visible, 0); i < kLanes; ++i) {
          s[u][i] = kNoScore;
        }
        top = s[u] > top ? s[u] : top;
        Store(s[u], args.scratch + p + u * kLanes);
      }
    }
    const float max = Max(top);
    Vec total = {}, x, e;
    for (int64_t p = 0; p < args.length; p += kLanes) {
      Load(args.scratch + p, x);
      x = x - max;
      Exp(x, e);
      total += e;
      Store(e, args.scratch + p);
    }
    const float inverse = 1.0f / Sum(total);
    for (int64_t d = 0; d < shape.head_dim; d += kLanes) {
      Vec s[4] = {}, v;
      // Weights past the length are 0, and the values there finite.
      for (int64_t p = 0; p < args.length; p += 4) {
        for (int64_t u = 0; u < 4; ++u) {
          Load(values + (p + u) * shape.padded_dim + d, v);
          s[u] += v * args.scratch[p + u];
        }
      }
      const Vec out = ((s[0] + s[1]) + (s[2] + s[3])) * inverse;
      const int64_t count = std::min(kLanes, shape.head_dim - d);
      std::memcpy(args.out + h * shape.head_dim + d, &out,
                  static_cast<size_t>(count) * sizeof(float));
    }
  }
}

COX_CLONES
void DropoutFactors(const DropoutFactorsArgs& args, float* out) {
  constexpr int64_t kGroup = 8 * kLanes;
  WordVec lane;
  for (int64_t i = 0; i < kLanes; ++i) lane[i] = static_cast<uint32_t>(i);
  Vec scale;
  Splat(args.scale, scale);
  const Vec zero = {};
  for (int64_t first = 0; first < args.n; first += kGroup) {
    WordVec words[4] = {lane + static_cast<uint32_t>(first / 8), WordVec{},
                        WordVec{} + args.place, WordVec{} + args.stack};
    PhiloxBlocks(args.key, words);
    Vec factors[8];
    for (int64_t k = 0; k < 4; ++k) {
      factors[2 * k] = (words[k] & 0xffffu) < args.threshold ? zero : scale;
      factors[2 * k + 1] = (words[k] >> 16) < args.threshold ? zero : scale;
    }
    std::memcpy(
        out + first, factors,
        static_cast<size_t>(std::min(kGroup, args.n - first)) * sizeof(float));
  }
}

}  // namespace cox
