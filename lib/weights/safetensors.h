#ifndef COX_LIB_WEIGHTS_SAFETENSORS_H_
#define COX_LIB_WEIGHTS_SAFETENSORS_H_

// The safetensors container: 8 bytes little-endian header length, JSON header,
// data section. Accepts what the reference reader accepts, for the dtypes of
// DType; nothing is allocated from a size that the file claims but lacks.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"
#include "lib/weights/manifest.h"

namespace cox {

// Longest header that is read at all (the reference's limit).
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in the data section
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // by begin
  std::map<std::string, std::string> metadata;
  uint64_t data_offset = 0;  // of the data section in the file
};

// Bytes that ParseSafetensorsHeader needs as prefix, from the file's first 8.
// DATA_LOSS when the length is impossible for a file of this size.
absl::StatusOr<uint64_t> SafetensorsHeaderEnd(std::string_view first8,
                                              uint64_t file_size);

// `file_size` is the whole file's; `prefix` its first bytes (at least the
// header, else INVALID_ARGUMENT). DATA_LOSS says what is wrong: header length,
// JSON, unknown dtype, shape product, hole, overlap, or a data section that is
// not covered exactly.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(
    std::string_view prefix, uint64_t file_size);

// Length field and JSON, padded with blanks to a multiple of 8. `entries` in
// file order.
std::string SerializeSafetensorsHeader(
    const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata);

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_SAFETENSORS_H_
