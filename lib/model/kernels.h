#ifndef COX_LIB_MODEL_KERNELS_H_
#define COX_LIB_MODEL_KERNELS_H_

// Float32 loops that LibTorch would need several passes over memory for.
// Compiled for AVX-512, AVX2 and baseline x86-64 and chosen at load time; the
// bits of a result depend on its own arguments and that choice only.

#include <cstdint>

namespace cox {

// log Σ exp(z) and, when `entropy` is not null, the entropy of softmax(z).
void SoftmaxStats(const float* z, int64_t n, float* log_sum, float* entropy);

struct SoftmaxGradArgs {
  int64_t n = 0;
  int64_t target = 0;
  float log_sum = 0;
  float entropy = 0;
  float logprob_gradient = 0;  // d loss / d log softmax(z)[target]
  float entropy_gradient = 0;
};
// z := d loss / d z. With p = softmax(z), g and e the gradients above:
//   dz_k = g (1[k = target] - p_k) - e p_k (log p_k + H).
void SoftmaxGradInPlace(float* z, const SoftmaxGradArgs& args);

// Keys and values of one sequence: keys [kv_heads, head_dim, capacity] (so
// that 16 positions are one load), values [kv_heads, capacity, padded_dim].
// Entries past the length hold finite numbers.
struct CacheShape {
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t capacity = 0;    // a multiple of 64
  int64_t padded_dim = 0;  // head_dim rounded up to a multiple of 16
};
int64_t RoundUp(int64_t value, int64_t multiple);

// Writes k, v [kv_heads * head_dim] at `position`.
void AppendToCache(const CacheShape& shape, int64_t position, const float* k,
                   const float* v, float* keys, float* values);

struct DecodeAttentionArgs {
  CacheShape shape;
  int64_t heads = 0;
  int64_t length = 0;  // visible positions, >= 1
  float scale = 1;
  const float* keys = nullptr;
  const float* values = nullptr;
  const float* q = nullptr;  // [heads * head_dim]
  float* scratch = nullptr;  // [capacity]
  float* out = nullptr;      // [heads * head_dim]
};
// One query against a cache: out = softmax(scale q K) V per head.
void AttendToCache(const DecodeAttentionArgs& args);

// Factors of dropout: out[i] = 0 with probability threshold / 2^16, else
// `scale`, i < n. Philox 4x32-10 (lib/base/rng.h) with `key` and counter
// {block, 0, place, stack}; element i = 128 g + 16 k + lane is bits 16 (k % 2)
// and up of word k / 2 of block 16 g + lane, dropped when below `threshold`.
struct DropoutFactorsArgs {
  uint64_t key = 0;
  uint32_t place = 0;
  uint32_t stack = 0;
  uint32_t threshold = 0;  // <= 2^16
  float scale = 1;
  int64_t n = 0;
};
void DropoutFactors(const DropoutFactorsArgs& args, float* out);

}  // namespace cox

#endif  // COX_LIB_MODEL_KERNELS_H_
