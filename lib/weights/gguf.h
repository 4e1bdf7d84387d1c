#ifndef COX_LIB_WEIGHTS_GGUF_H_
#define COX_LIB_WEIGHTS_GGUF_H_

// The GGUF container, versions 2 and 3, little-endian: magic, counts, typed
// key-value pairs, tensor descriptions, aligned data. Every size that the file
// states is checked against what the file has before memory is taken.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lib/base/fs.h"
#include "lib/base/status.h"

namespace cox {

// Longest header (all before the data section) that is read at all.
inline constexpr uint64_t kMaxGgufHeaderBytes = uint64_t{128} << 20;

// Storage of a tensor. Blocks hold 32 consecutive elements of a row.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,  // f16 scale d, 16 bytes of nibbles q:  d (q - 8)
  kQ4_1 = 3,  // f16 d, f16 minimum m, 16 bytes:      d q + m
  kQ8_0 = 8,  // f16 d, 32 signed bytes q:            d q
  kBF16 = 30,
};
struct GgufTypeInfo {
  GgufType type;
  std::string_view name;
  int64_t block_elements;
  int64_t block_bytes;
};
// Null for a type that is not read.
const GgufTypeInfo* FindGgufType(uint32_t type);

// `data` holds out.size() elements, whole blocks. Products and sums are those
// of float32, one rounding each, so that any reader of the format gives the
// same bits. INVALID_ARGUMENT when the size differs.
absl::Status DequantizeGguf(GgufType type, std::string_view data,
                            std::span<float> out);

// A list of numbers or flags, as stored.
struct GgufNumbers {
  uint32_t type = 0;  // of the elements, as in the file
  std::string bytes;
};
// Integers keep their sign; a float is widened.
using GgufValue = std::variant<bool, uint64_t, int64_t, double, std::string,
                               std::vector<std::string>, GgufNumbers>;

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  std::vector<int64_t> shape;  // row-major: slowest dimension first
  uint64_t offset = 0;         // in the file
  uint64_t bytes = 0;
};

struct GgufHeader {
  std::map<std::string, GgufValue> values;
  std::vector<GgufTensor> tensors;  // by name
  uint64_t data_offset = 0;

  // Typed reads. Absent: nullopt. INVALID_ARGUMENT names a key of another type
  // or, for Integer, outside int64.
  absl::StatusOr<std::optional<int64_t>> Integer(const std::string& key) const;
  absl::StatusOr<std::optional<double>> Number(const std::string& key) const;
  absl::StatusOr<std::optional<bool>> Flag(const std::string& key) const;
  absl::StatusOr<std::optional<std::string>> Text(const std::string& key) const;
  // The list itself, without a copy; null when absent.
  absl::StatusOr<const std::vector<std::string>*> Texts(
      const std::string& key) const;
  absl::StatusOr<std::optional<std::vector<int64_t>>> Integers(
      const std::string& key) const;
};

// `file_size` is the whole file's; `prefix` its first bytes. OUT_OF_RANGE when
// the header goes on beyond `prefix` (call again with more); DATA_LOSS says
// what is wrong: magic, version, a count or length beyond the file, a key or
// tensor name twice, a shape whose size overflows, data that is misaligned,
// overlaps or ends beyond the file; FAILED_PRECONDITION names a tensor's type
// that is not read.
absl::StatusOr<GgufHeader> ParseGgufHeader(std::string_view prefix,
                                           uint64_t file_size);

// Of a file; the message has the path.
absl::StatusOr<GgufHeader> ReadGgufHeader(Fs& fs, const std::string& path);

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_GGUF_H_
