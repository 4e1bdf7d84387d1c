#ifndef COX_TESTS_TESTING_FLIPS_H_
#define COX_TESTS_TESTING_FLIPS_H_

// Bit flips at rest. COX_FLIPS sets how many a test tries (docs/durability.md);
// without it a few hundred.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "lib/base/rng.h"

namespace cox::testing {

inline int64_t FlipCount(int64_t otherwise) {
  const char* text = std::getenv("COX_FLIPS");
  return text == nullptr ? otherwise : std::max(1, std::atoi(text));
}

inline std::string Flipped(std::string bytes, uint64_t bit) {
  bytes[static_cast<size_t>(bit / 8)] = static_cast<char>(
      static_cast<unsigned char>(bytes[static_cast<size_t>(bit / 8)]) ^
      (1u << (bit % 8)));
  return bytes;
}

// The bit of flip number n: one in every byte of the first `header` bytes,
// then any.
inline uint64_t FlipPlace(CounterRng& rng, int64_t n, size_t header,
                          size_t size) {
  const auto byte = static_cast<uint64_t>(n);
  return byte < std::min(header, size) ? 8 * byte + rng.NextBelow(8)
                                       : rng.NextBelow(8 * size);
}

}  // namespace cox::testing

#endif  // COX_TESTS_TESTING_FLIPS_H_
