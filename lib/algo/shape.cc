#include "lib/algo/shape.h"

#include <limits>

namespace cox {

absl::Status CheckSize(std::string_view name, size_t size, int64_t expected) {
  if (static_cast<int64_t>(size) == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(name), ": expected ", expected, " elements, found ", size));
}

absl::Status OutOfRange(std::string_view name, double value,
                        std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(name), ": ", std::string(what), ", found ", value));
}

absl::Status CheckRange(std::string_view name, double value, double low,
                        double high) {
  if (value >= low && value <= high && std::isfinite(value)) {
    return absl::OkStatus();
  }
  if (high >= std::numeric_limits<double>::max()) {
    return OutOfRange(name, value, absl::StrCat("must be at least ", low));
  }
  return OutOfRange(name, value,
                    absl::StrCat("must be in [", low, ", ", high, "]"));
}

absl::Status CheckPositive(std::string_view name, double value) {
  if (value > 0 && std::isfinite(value)) return absl::OkStatus();
  return OutOfRange(name, value, "must be positive");
}

absl::Status CheckNotNegative(std::string_view name, double value) {
  return CheckRange(name, value, 0, std::numeric_limits<double>::max());
}

int64_t RowLength(Shape2 shape, Mask mask, int64_t row) {
  int64_t length = 0;
  for (const uint8_t m : mask.subspan(row * shape.cols, shape.cols)) {
    length += m != 0;
  }
  return length;
}

}  // namespace cox
