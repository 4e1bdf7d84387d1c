#include "lib/weights/convert.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace cox {
namespace {

static_assert(std::endian::native == std::endian::little,
              "arenas and safetensors are little-endian");

template <typename T, typename F>
void ConvertEach(std::string_view data, std::span<float> out, F convert) {
  const char* in = data.data();
  for (float& value : out) {
    T element;
    std::memcpy(&element, in, sizeof(T));
    in += sizeof(T);
    value = convert(element);
  }
}

}  // namespace

float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

float F16ToFloat(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0x1f) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  }
  if (exponent == 0) {  // zero, subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  // Rebias 15 -> 127.
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) |
                              (mantissa << 13));
}

uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) {
    // Rounding could carry a NaN into infinity: set the quiet bit instead.
    return static_cast<uint16_t>((bits >> 16) | 0x40);
  }
  const uint32_t round_up = 0x7fff + ((bits >> 16) & 1);
  return static_cast<uint16_t>((bits + round_up) >> 16);
}

absl::Status ConvertToFloat(DType dtype, std::string_view data,
                            std::span<float> out) {
  const auto element_bytes = static_cast<size_t>(DTypeBytes(dtype));
  if (data.size() / element_bytes != out.size() ||
      data.size() % element_bytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("convert: expected ", out.size(), " elements of ",
                     element_bytes, " bytes, found ", data.size(), " bytes"));
  }
  switch (dtype) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), data.data(), data.size());
      return absl::OkStatus();
    case DType::kBF16:
      ConvertEach<uint16_t>(data, out, Bf16ToFloat);
      return absl::OkStatus();
    case DType::kF16:
      ConvertEach<uint16_t>(data, out, F16ToFloat);
      return absl::OkStatus();
    case DType::kF64:
      ConvertEach<double>(data, out,
                          [](double x) { return static_cast<float>(x); });
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(
          "convert: the tensor holds integers, not weights");
  }
}

}  // namespace cox
