#ifndef COX_TESTS_ALGO_NUMERIC_H_
#define COX_TESTS_ALGO_NUMERIC_H_

// Tools for checking numbers: vectors of docs/algorithms.md are printed with
// six decimals, so they are met to half a unit of the last one.

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/algo/reducer.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"

namespace cox {

inline constexpr double kPrinted = 1e-6;  // tolerance for printed vectors
inline constexpr double kExact = 1e-12;
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInf = std::numeric_limits<double>::infinity();

using Doubles = std::vector<double>;
using MaskVector = std::vector<uint8_t>;

// Same size, every element within `tolerance`.
MATCHER_P2(AllNear, expected, tolerance, "") {
  if (arg.size() != expected.size()) {
    *result_listener << "size " << arg.size();
    return false;
  }
  for (size_t i = 0; i < arg.size(); ++i) {
    const double x = static_cast<double>(arg[i]);
    if (!(std::abs(x - expected[i]) <= tolerance)) {
      *result_listener << "element " << i << " is " << x << ", expected "
                       << expected[i];
      return false;
    }
  }
  return true;
}
inline auto IsNear(Doubles expected, double tolerance = kPrinted) {
  return AllNear(std::move(expected), tolerance);
}

// Central differences of f at x, zero where mask is 0.
inline Doubles FiniteDifferences(const std::function<double(const Doubles&)>& f,
                                 Doubles x, const MaskVector& mask,
                                 double h = 1e-6) {
  Doubles grad(x.size(), 0.0);
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask[i] == 0) continue;
    const double at = x[i];
    x[i] = at + h;
    const double above = f(x);
    x[i] = at - h;
    const double below = f(x);
    x[i] = at;
    grad[i] = (above - below) / (2 * h);
  }
  return grad;
}

inline Doubles Normals(CounterRng& rng, size_t n, double mean = 0,
                       double std = 1) {
  Doubles x(n);
  for (double& v : x) v = mean + std * rng.NextNormal();
  return x;
}
inline MaskVector RandomMask(CounterRng& rng, size_t n, double keep = 0.7) {
  MaskVector mask(n);
  for (uint8_t& m : mask) m = rng.NextUniform() < keep;
  return mask;
}
// A copy with NaN, inf and −inf where mask is 0.
inline Doubles Poisoned(Doubles x, const MaskVector& mask) {
  const double poison[] = {kNan, kInf, -kInf};
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask[i] == 0) x[i] = poison[i % 3];
  }
  return x;
}

inline std::vector<float> ToFloats(const Doubles& x) {
  return {x.begin(), x.end()};
}

}  // namespace cox

#endif  // COX_TESTS_ALGO_NUMERIC_H_
