#ifndef COX_TESTS_OPS_ARGS_H_
#define COX_TESTS_OPS_ARGS_H_

// Decoding of an op's arguments and encoding of its result: JSON numbers or
// "nan", "inf", "-inf"; tensors are nested lists, row-major. Every error is
// INVALID_ARGUMENT and names the argument.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/algo/shape.h"
#include "lib/base/status.h"
#include "nlohmann/json.hpp"

namespace cox::ops {

using Json = nlohmann::json;

template <typename T>
struct Tensor {
  std::vector<int64_t> dims;
  std::vector<T> data;
  std::span<const T> span() const { return data; }
  Shape2 shape() const { return {dims[0], dims[1]}; }
};

// "name: message" with the same code; OK stays OK.
absl::Status Named(const std::string& name, const absl::Status& status);

// Arguments of one request. `null` counts as absent.
class Args {
 public:
  // `object` must outlive the Args and be a JSON object. `prefix` comes before
  // argument names in messages, for nested objects.
  explicit Args(const Json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  // INVALID_ARGUMENT for the first name that is not in `allowed`.
  absl::Status CheckNames(std::span<const std::string_view> allowed) const;

  bool Has(const char* name) const;
  // Also true for null.
  bool Given(const char* name) const { return object_.contains(name); }
  // The raw value. INVALID_ARGUMENT if absent.
  absl::StatusOr<const Json*> Raw(const char* name) const;
  absl::StatusOr<Args> Object(const char* name) const;

  absl::StatusOr<double> Number(const char* name) const;
  absl::StatusOr<double> Number(const char* name, double fallback) const;
  absl::StatusOr<std::optional<double>> MaybeNumber(const char* name) const;
  // Integers of magnitude up to 2^53, at least `low`.
  absl::StatusOr<int64_t> Int(const char* name, int64_t low = 0) const;
  absl::StatusOr<int64_t> IntOr(const char* name, int64_t fallback,
                                int64_t low = 0) const;
  // Any 64-bit value >= 0.
  absl::StatusOr<uint64_t> Uint(const char* name) const;
  absl::StatusOr<uint64_t> Uint(const char* name, uint64_t fallback) const;
  absl::StatusOr<bool> Bool(const char* name, bool fallback) const;
  absl::StatusOr<std::string> String(const char* name) const;
  absl::StatusOr<std::string> StringOr(const char* name,
                                       const char* fallback) const;

  // Nested lists of the given depth. INVALID_ARGUMENT when ragged.
  template <typename T>
  absl::StatusOr<Tensor<T>> Floats(const char* name, int rank) const;
  absl::StatusOr<Tensor<int64_t>> Ints(const char* name, int rank) const;
  absl::StatusOr<Tensor<uint64_t>> Uints(const char* name, int rank) const;
  absl::StatusOr<Tensor<uint8_t>> Flags(const char* name, int rank) const;
  // 0/1 tensor of these dimensions; absent = all ones.
  absl::StatusOr<Tensor<uint8_t>> Mask(std::span<const int64_t> dims) const;
  // As Floats, with the dimensions given; absent = empty.
  template <typename T>
  absl::StatusOr<Tensor<T>> MaybeFloats(const char* name,
                                        std::span<const int64_t> dims) const;
  template <typename T>
  absl::StatusOr<Tensor<T>> FloatsLike(const char* name,
                                       std::span<const int64_t> dims) const;
  absl::StatusOr<std::vector<std::vector<int64_t>>> RaggedInts(
      const char* name, int64_t low = 0) const;
  template <typename T>
  absl::StatusOr<std::vector<std::vector<T>>> RaggedFloats(
      const char* name) const;
  absl::StatusOr<std::vector<std::string>> Strings(const char* name) const;
  // Any scalars, numbered in order of first appearance.
  absl::StatusOr<std::vector<int64_t>> Labels(const char* name) const;

  std::string Path(const char* name) const { return prefix_ + name; }

 private:
  const Json& object_;
  std::string prefix_;
};

absl::Status CheckDims(const std::string& name, std::span<const int64_t> dims,
                       std::span<const int64_t> expected);

// Numbers of dtype T with 17 or 9 digits.
inline Json EncodeNumber(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  return x;
}
inline Json EncodeNumber(float x) {
  if (!std::isfinite(x)) return EncodeNumber(static_cast<double>(x));
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(x));
  return std::strtod(text, nullptr);
}
inline Json EncodeNumber(int64_t x) { return x; }
inline Json EncodeNumber(uint8_t x) { return static_cast<int>(x); }

template <typename T>
Json EncodeList(std::span<const T> data) {
  Json list = Json::array();
  for (const T& x : data) list.push_back(EncodeNumber(x));
  return list;
}
template <typename T>
Json EncodeList(const std::vector<T>& data) {
  return EncodeList(std::span<const T>(data));
}
Json EncodeBools(std::span<const uint8_t> data);

template <typename T>
Json EncodeTensor(std::span<const T> data, std::span<const int64_t> dims) {
  if (dims.size() == 1) return EncodeList(data);
  Json list = Json::array();
  const size_t stride = dims[0] == 0 ? 0 : data.size() / dims[0];
  for (int64_t i = 0; i < dims[0]; ++i) {
    list.push_back(
        EncodeTensor(data.subspan(i * stride, stride), dims.subspan(1)));
  }
  return list;
}
template <typename T>
Json EncodeTensor(const std::vector<T>& data,
                  const std::vector<int64_t>& dims) {
  return EncodeTensor(std::span<const T>(data), std::span<const int64_t>(dims));
}

}  // namespace cox::ops

#endif  // COX_TESTS_OPS_ARGS_H_
