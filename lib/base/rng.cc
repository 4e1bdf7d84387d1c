#include "lib/base/rng.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <utility>

#include "lib/base/status.h"

namespace cox {
namespace {

constexpr uint32_t kMultiplier0 = 0xD2511F53;
constexpr uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9;
constexpr uint32_t kWeyl1 = 0xBB67AE85;

uint32_t Low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t High(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

// FNV-1a, 64 bits: short, fixed for ever, and names are few.
uint64_t HashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001b3;
  }
  return hash;
}

// The top 53 bits, so every value is exact in a double.
double ToUniform(uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

uint64_t Join(uint32_t low, uint32_t high) {
  return (uint64_t{high} << 32) | low;
}

}  // namespace

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                   std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * counter[2];
    counter = {High(product1) ^ counter[1] ^ key[0], Low(product1),
               High(product0) ^ counter[3] ^ key[1], Low(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

double TokenUniform(uint64_t seed, uint64_t prompt_id, uint64_t sample_index,
                    uint64_t position) {
  // Four 64-bit inputs do not fit one block's 192 bits: the first block turns
  // (seed, prompt, sample) into a key and half a counter, the second draws.
  const std::array<uint32_t, 4> derived = Philox4x32(
      {Low(prompt_id), High(prompt_id), Low(sample_index), High(sample_index)},
      {Low(seed), High(seed)});
  const std::array<uint32_t, 4> block =
      Philox4x32({Low(position), High(position), derived[2], derived[3]},
                 {derived[0], derived[1]});
  return ToUniform(Join(block[0], block[1]));
}

CounterRng::CounterRng(uint64_t seed, std::string_view stream)
    : key_(seed), stream_(HashName(stream)) {}

uint64_t CounterRng::NextUint64() {
  const std::array<uint32_t, 4> block =
      Philox4x32({Low(position_), High(position_), Low(stream_), High(stream_)},
                 {Low(key_), High(key_)});
  ++position_;
  return Join(block[0], block[1]);
}

double CounterRng::NextUniform() { return ToUniform(NextUint64()); }

double CounterRng::NextNormal() {
  const double radius_uniform = 1.0 - NextUniform();  // (0, 1]: log is finite
  const double angle_uniform = NextUniform();
  return std::sqrt(-2.0 * std::log(radius_uniform)) *
         std::cos(2.0 * std::numbers::pi * angle_uniform);
}

uint64_t CounterRng::NextBelow(uint64_t bound) {
  COX_CHECK(bound > 0);
  // Values at or above the largest multiple of bound would favour small
  // remainders: draw again.
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  const uint64_t excess = (kMax % bound + 1) % bound;  // 2^64 mod bound
  for (;;) {
    const uint64_t value = NextUint64();
    if (value <= kMax - excess) return value % bound;
  }
}

std::vector<int64_t> Permutation(int64_t n, uint64_t seed,
                                 std::string_view stream) {
  COX_CHECK(n >= 0);
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  CounterRng rng(seed, stream);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(rng.NextBelow(i))]);
  }
  return order;
}

}  // namespace cox
