#ifndef COX_LIB_GPU_SAMPLE_MATH_H_
#define COX_LIB_GPU_SAMPLE_MATH_H_

// Sampling on the device: from a row of logits to a token and its behaviour
// log-prob, with the meaning and the random numbers of lib/algo/sampling
// (docs/algorithms.md §10). The uniform has the same bits; sums over the
// vocabulary are in float64 in another order, so a token differs only if its
// cumulative probability is within rounding of the uniform.

#include <cmath>
#include <cstdint>

#include "lib/gpu/block.h"

namespace cox::gpu {

// Philox 4x32-10 (lib/base/rng.h). `counter` becomes the block.
COX_HD void Philox(uint32_t counter[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter[2];
    const uint32_t a = static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key0;
    const uint32_t b = static_cast<uint32_t>(p1);
    const uint32_t c = static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key1;
    const uint32_t d = static_cast<uint32_t>(p0);
    counter[0] = a;
    counter[1] = b;
    counter[2] = c;
    counter[3] = d;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// TokenUniform of lib/base/rng.h, bit for bit.
COX_HD double Uniform(uint64_t seed, uint64_t prompt_id, uint64_t sample_index,
                      uint64_t position) {
  uint32_t derived[4] = {static_cast<uint32_t>(prompt_id),
                         static_cast<uint32_t>(prompt_id >> 32),
                         static_cast<uint32_t>(sample_index),
                         static_cast<uint32_t>(sample_index >> 32)};
  Philox(derived, static_cast<uint32_t>(seed),
         static_cast<uint32_t>(seed >> 32));
  uint32_t block[4] = {static_cast<uint32_t>(position),
                       static_cast<uint32_t>(position >> 32), derived[2],
                       derived[3]};
  Philox(block, derived[0], derived[1]);
  const uint64_t bits = (uint64_t{block[1]} << 32) | block[0];
  return static_cast<double>(bits >> 11) * (1.0 / 9007199254740992.0);  // 2^-53
}

struct SampleArgs {
  int64_t vocab = 0;
  double temperature = 1;  // 0 = argmax, log-prob 0
  int64_t top_k = 0;       // 0 = off
  double top_p = 1;
  double min_p = 0;
  double uniform = 0;
};
struct Sampled {
  int64_t token;
  double logprob;
  bool valid;  // false: a NaN or +inf among the logits, or nothing left
};

// Order of floats as integers: a < b exactly if Key(a) < Key(b).
COX_HD uint32_t FloatKey(float x) {
  union {
    float f;
    uint32_t u;
  } bits;
  bits.f = x == 0.0f ? 0.0f : x;  // -0 and 0 are one value
  return (bits.u & 0x80000000u) != 0 ? ~bits.u : bits.u | 0x80000000u;
}
inline constexpr uint32_t kRemovedKey = 0x007fffffu;  // FloatKey(-inf)

// One row of logits, forbidden ids already -inf, and what remains of it. A
// token stays if its key is above `floor`, or equal to it and its id at most
// `last_equal`.
struct SampleRow {
  const float* logits;
  double top;  // largest logit
  double temperature;
  uint32_t floor;
  int64_t last_equal;
};

COX_HD bool Stays(const SampleRow& row, int64_t id) {
  const uint32_t key = FloatKey(row.logits[id]);
  return key > row.floor || (key == row.floor && id <= row.last_equal);
}
COX_HD double Weight(const SampleRow& row, int64_t id) {
  return exp((static_cast<double>(row.logits[id]) - row.top) / row.temperature);
}

// Largest key so that at least k tokens have it or a larger one.
template <typename Block>
COX_HD uint32_t KeyOfRank(const Block& block, const SampleRow& row,
                          int64_t vocab, int64_t k) {
  const Part part = PartOf(block, vocab);
  uint32_t key = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const uint32_t tried = key | bit;
    int64_t count = 0;
    for (int64_t i = part.first; i < part.end; ++i) {
      count += FloatKey(row.logits[i]) >= tried ? 1 : 0;
    }
    if (block.Sum(count) >= k) key = tried;
  }
  return key;
}

// Weight of the tokens that stay and whose key is below `limit`.
template <typename Block>
COX_HD double WeightBelow(const Block& block, const SampleRow& row,
                          int64_t vocab, uint32_t limit) {
  const Part part = PartOf(block, vocab);
  double sum = 0;
  for (int64_t i = part.first; i < part.end; ++i) {
    if (FloatKey(row.logits[i]) < limit && Stays(row, i)) {
      sum += Weight(row, i);
    }
  }
  return block.Sum(sum);
}

// Removes the least probable tokens, the higher id first among equals, while
// their probabilities add up to at most 1 - p; never the last one.
template <typename Block>
COX_HD void MaskTopP(const Block& block, int64_t vocab, double top_p,
                     SampleRow* row) {
  const double total = WeightBelow(block, *row, vocab, 0xffffffffu);
  const double budget = 1.0 - top_p;
  // The largest key below which everything goes.
  uint32_t key = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const uint32_t tried = key | bit;
    if (WeightBelow(block, *row, vocab, tried) / total <= budget) key = tried;
  }
  const uint32_t top_key = FloatKey(static_cast<float>(row->top));
  if (key > top_key) key = top_key;
  // Of the tokens with that key some may go, from the highest id down.
  const Part part = PartOf(block, vocab);
  int64_t equals = 0;
  for (int64_t i = part.first; i < part.end; ++i) {
    equals += FloatKey(row->logits[i]) == key && Stays(*row, i) ? 1 : 0;
  }
  const int64_t all_equals = block.Sum(equals);
  double spent = WeightBelow(block, *row, vocab, key) / total;
  double weight_of_key = 0;
  for (int64_t i = part.first; i < part.end && weight_of_key == 0; ++i) {
    if (FloatKey(row->logits[i]) == key && Stays(*row, i)) {
      weight_of_key = Weight(*row, i);
    }
  }
  weight_of_key = block.Max(weight_of_key) / total;
  int64_t left = all_equals;
  while (left > (key == top_key ? 1 : 0) && spent + weight_of_key <= budget) {
    spent += weight_of_key;
    --left;
  }
  // The `left` lowest ids of that key stay. One rank holds the last of them.
  int64_t before = 0;
  int64_t last = -1;
  for (int r = 0; r < block.threads(); ++r) {
    const int64_t of_rank = block.Sum(r == block.rank() ? equals : int64_t{0});
    if (r == block.rank() && before < left && left <= before + of_rank) {
      int64_t seen = before;
      for (int64_t i = part.first; i < part.end; ++i) {
        if (FloatKey(row->logits[i]) == key && Stays(*row, i) &&
            ++seen == left) {
          last = i;
        }
      }
    }
    before += of_rank;
  }
  row->last_equal = block.Max(last);
  row->floor = key;
}

// The id at which the cumulative probability passes `uniform`, in id order, and
// its log-prob. Every thread gets the same answer.
template <typename Block>
COX_HD Sampled Draw(const Block& block, const SampleRow& row,
                    const SampleArgs& args, double min_weight) {
  const Part part = PartOf(block, args.vocab);
  double own = 0;
  int64_t own_last = -1;
  for (int64_t i = part.first; i < part.end; ++i) {
    if (!Stays(row, i)) continue;
    const double w = Weight(row, i);
    if (w < min_weight || w == 0) continue;
    own += w;
    own_last = i;
  }
  const double total = block.Sum(own);
  const int64_t last = block.Max(own_last);
  const double before = block.SumBefore(own);
  int64_t found = args.vocab;
  double cumulative = before;
  for (int64_t i = part.first; i < part.end && found == args.vocab; ++i) {
    if (!Stays(row, i)) continue;
    const double w = Weight(row, i);
    if (w < min_weight || w == 0) continue;
    cumulative += w;
    if (cumulative / total > args.uniform) found = i;
  }
  found = -block.Max(-found);  // the lowest
  if (found > last) found = last;
  const double scaled =
      (static_cast<double>(row.logits[found]) - row.top) / row.temperature;
  return {found, scaled - log(total), true};
}

template <typename Block>
COX_HD Sampled Sample(const Block& block, const float* logits,
                      const SampleArgs& args) {
  const Part part = PartOf(block, args.vocab);
  float own_top = -INFINITY;
  int64_t bad = 0;
  for (int64_t i = part.first; i < part.end; ++i) {
    const float z = logits[i];
    bad += z < INFINITY ? 0 : 1;  // NaN too
    own_top = z > own_top ? z : own_top;
  }
  const float top = block.Max(own_top);
  if (block.Sum(bad) != 0 || top == -INFINITY) return {0, 0.0, false};
  SampleRow row = {logits, static_cast<double>(top), args.temperature,
                   kRemovedKey, -1};
  if (args.temperature == 0) {
    int64_t best = args.vocab;
    for (int64_t i = part.first; i < part.end && best == args.vocab; ++i) {
      if (logits[i] == top) best = i;
    }
    return {-block.Max(-best), 0.0, true};
  }
  if (args.top_k > 0 && args.top_k < args.vocab) {
    const uint32_t key = KeyOfRank(block, row, args.vocab, args.top_k);
    if (key > row.floor) {
      row.floor = key - 1;  // equals of the k-th stay
    }
  }
  if (args.top_p < 1) MaskTopP(block, args.vocab, args.top_p, &row);
  return Draw(block, row, args, args.min_p);
}

}  // namespace cox::gpu

#endif  // COX_LIB_GPU_SAMPLE_MATH_H_
