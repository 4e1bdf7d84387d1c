#ifndef COX_LIB_BASE_RNG_H_
#define COX_LIB_BASE_RNG_H_

// Counter-based random numbers (Philox 4x32-10, Salmon et al. 2011): the value
// is a function of key and counter alone, so no generator state is ever saved,
// and a sample does not depend on batch composition, worker or restarts.

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace cox {

// One Philox block: 128 random bits for (key, counter).
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                   std::array<uint32_t, 2> key);

// The actor's uniform in [0, 1) with 53 random bits for one token:
// key = (seed, prompt_id, sample_index), counter = position.
double TokenUniform(uint64_t seed, uint64_t prompt_id, uint64_t sample_index,
                    uint64_t position);

// A named stream of numbers for everything else (shuffles, initialisation,
// label noise): element n of stream (seed, name) is a pure function of all
// three. Thread-compatible.
class CounterRng {
 public:
  CounterRng(uint64_t seed, std::string_view stream);
  uint64_t NextUint64();
  double NextUniform();                // [0, 1)
  double NextNormal();                 // Box-Muller, two uniforms each
  uint64_t NextBelow(uint64_t bound);  // REQUIRES bound > 0; no modulo bias
  void Seek(uint64_t position) { position_ = position; }

 private:
  uint64_t key_;
  uint64_t stream_;
  uint64_t position_ = 0;
};

// Fisher-Yates permutation of 0..n-1 drawn from CounterRng(seed, stream).
std::vector<int64_t> Permutation(int64_t n, uint64_t seed,
                                 std::string_view stream);

}  // namespace cox

#endif  // COX_LIB_BASE_RNG_H_
