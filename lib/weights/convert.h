#ifndef COX_LIB_WEIGHTS_CONVERT_H_
#define COX_LIB_WEIGHTS_CONVERT_H_

// Number formats of stored weights.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "lib/base/status.h"
#include "lib/weights/manifest.h"

namespace cox {

float Bf16ToFloat(uint16_t bits);
float F16ToFloat(uint16_t bits);
// Round to nearest, ties to even; NaN stays NaN, overflow becomes infinity.
uint16_t FloatToBf16(float value);

// `data` (little-endian, any alignment) holds out.size() elements.
// INVALID_ARGUMENT when the size differs or dtype is not a floating type.
absl::Status ConvertToFloat(DType dtype, std::string_view data,
                            std::span<float> out);

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_CONVERT_H_
