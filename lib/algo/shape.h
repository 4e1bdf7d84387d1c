#ifndef COX_LIB_ALGO_SHAPE_H_
#define COX_LIB_ALGO_SHAPE_H_

// Batches are row-major [rows, cols] = [B, T] spans with a mask of the same
// size: 1 where the policy sampled the token (docs/algorithms.md §1).
//
// Every function of lib/algo keeps these rules:
// - values under mask 0 are never read; outputs there are exactly 0;
// - a non-finite value under mask 1, a wrong size or an argument out of range
//   is INVALID_ARGUMENT, and the message begins with the argument's name;
// - T is float or double; arithmetic and accumulation are double;
// - all functions are thread-safe (no hidden state).

#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>

#include "lib/base/status.h"

namespace cox {

struct Shape2 {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t size() const { return rows * cols; }
};

using Mask = std::span<const uint8_t>;

// INVALID_ARGUMENT unless `size` elements were expected and given.
absl::Status CheckSize(std::string_view name, size_t size, int64_t expected);

// INVALID_ARGUMENT "<name>: <what>, found <value>".
absl::Status OutOfRange(std::string_view name, double value,
                        std::string_view what);

// Finite and within [low, high].
absl::Status CheckRange(std::string_view name, double value, double low,
                        double high);
// Finite and > 0.
absl::Status CheckPositive(std::string_view name, double value);
// Finite and >= 0.
absl::Status CheckNotNegative(std::string_view name, double value);

// INVALID_ARGUMENT naming the first non-finite element under mask 1.
template <typename T>
absl::Status CheckFinite(std::string_view name, std::span<const T> x,
                         Mask mask) {
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask[i] != 0 && !std::isfinite(x[i])) [[unlikely]] {
      return absl::InvalidArgumentError(absl::StrCat(
          std::string(name), ": non-finite value at flat index ", i));
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status CheckAllFinite(std::string_view name, std::span<const T> x) {
  for (size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i])) [[unlikely]] {
      return absl::InvalidArgumentError(absl::StrCat(
          std::string(name), ": non-finite value at flat index ", i));
    }
  }
  return absl::OkStatus();
}

// Size and, under the mask, finiteness.
template <typename T>
absl::Status CheckMasked(std::string_view name, std::span<const T> x,
                         Shape2 shape, Mask mask) {
  COX_RETURN_IF_ERROR(CheckSize(name, x.size(), shape.size()));
  return CheckFinite(name, x, mask);
}

// Number of mask 1 tokens of one row.
int64_t RowLength(Shape2 shape, Mask mask, int64_t row);

}  // namespace cox

#endif  // COX_LIB_ALGO_SHAPE_H_
