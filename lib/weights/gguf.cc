#include "lib/weights/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_join.h"
#include "lib/weights/convert.h"

namespace cox {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kMaxKeyBytes = 65535;  // the format's own bound
constexpr uint64_t kFirstRead = uint64_t{1} << 20;
constexpr int64_t kBlock = 32;

constexpr std::array<GgufTypeInfo, 6> kTypes = {{
    {GgufType::kF32, "F32", 1, 4},
    {GgufType::kF16, "F16", 1, 2},
    {GgufType::kQ4_0, "Q4_0", kBlock, 18},
    {GgufType::kQ4_1, "Q4_1", kBlock, 20},
    {GgufType::kQ8_0, "Q8_0", kBlock, 34},
    {GgufType::kBF16, "BF16", 1, 2},
}};

// Types of values in the key-value section.
enum ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Bytes of a number or flag; 0 for strings, lists and unknown types.
uint64_t ScalarBytes(uint32_t type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool:
      return 1;
    case kUint16:
    case kInt16:
      return 2;
    case kUint32:
    case kInt32:
    case kFloat32:
      return 4;
    case kUint64:
    case kInt64:
    case kFloat64:
      return 8;
    default:
      return 0;
  }
}

absl::Status Bad(const std::string& what) {
  return absl::DataLossError(absl::StrCat("gguf: ", what));
}

template <typename T>
T Load(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

GgufValue ScalarValue(uint32_t type, const char* bytes) {
  switch (type) {
    case kUint8:
      return uint64_t{Load<uint8_t>(bytes)};
    case kInt8:
      return int64_t{Load<int8_t>(bytes)};
    case kUint16:
      return uint64_t{Load<uint16_t>(bytes)};
    case kInt16:
      return int64_t{Load<int16_t>(bytes)};
    case kUint32:
      return uint64_t{Load<uint32_t>(bytes)};
    case kInt32:
      return int64_t{Load<int32_t>(bytes)};
    case kFloat32:
      return double{Load<float>(bytes)};
    case kUint64:
      return Load<uint64_t>(bytes);
    case kInt64:
      return Load<int64_t>(bytes);
    case kFloat64:
      return Load<double>(bytes);
    default:
      return Load<uint8_t>(bytes) != 0;
  }
}

// Reads forward through the prefix; remembers how many bytes the file has.
class Cursor {
 public:
  Cursor(std::string_view prefix, uint64_t file_size)
      : prefix_(prefix), file_size_(file_size) {}

  uint64_t position() const { return position_; }
  // In the file, whether or not the prefix has them.
  uint64_t left() const { return file_size_ - position_; }

  absl::StatusOr<const char*> Take(uint64_t bytes, std::string_view what) {
    if (bytes > left()) {
      return Bad(absl::StrCat(std::string(what), " of ", bytes, " bytes at ",
                              position_, " in a file of ", file_size_));
    }
    if (bytes > prefix_.size() - position_) {
      return absl::OutOfRangeError("gguf: the header is longer");
    }
    const char* data = prefix_.data() + position_;
    position_ += bytes;
    return data;
  }
  template <typename T>
  absl::StatusOr<T> Number(std::string_view what) {
    COX_ASSIGN_OR_RETURN(const char* data, Take(sizeof(T), what));
    return Load<T>(data);
  }
  absl::StatusOr<std::string> String(std::string_view what, uint64_t most) {
    COX_ASSIGN_OR_RETURN(const uint64_t length, Number<uint64_t>(what));
    if (length > most) {
      return Bad(absl::StrCat(std::string(what), " of ", length,
                              " bytes, at most ", most));
    }
    COX_ASSIGN_OR_RETURN(const char* data, Take(length, what));
    return std::string(data, static_cast<size_t>(length));
  }
  // A count of things of at least `least` bytes each.
  absl::StatusOr<uint64_t> Count(std::string_view what, uint64_t least) {
    COX_ASSIGN_OR_RETURN(const uint64_t count, Number<uint64_t>(what));
    if (count > left() / least) {
      return Bad(absl::StrCat(count, " ", std::string(what),
                              " cannot be in a file of ", file_size_,
                              " bytes"));
    }
    return count;
  }

 private:
  std::string_view prefix_;
  uint64_t file_size_;
  uint64_t position_ = 0;
};

absl::StatusOr<GgufValue> ReadList(Cursor& in, const std::string& key) {
  COX_ASSIGN_OR_RETURN(const uint32_t type, in.Number<uint32_t>("list type"));
  if (type == kString) {
    COX_ASSIGN_OR_RETURN(const uint64_t count, in.Count("strings", 8));
    std::vector<std::string> list;
    for (uint64_t i = 0; i < count; ++i) {
      COX_ASSIGN_OR_RETURN(std::string text,
                           in.String("string", kMaxGgufHeaderBytes));
      list.push_back(std::move(text));
    }
    return list;
  }
  const uint64_t width = ScalarBytes(type);
  if (width == 0) {
    return Bad(
        absl::StrCat("key '", key, "': lists of type ", type, " are not read"));
  }
  COX_ASSIGN_OR_RETURN(const uint64_t count, in.Count("numbers", width));
  COX_ASSIGN_OR_RETURN(const char* data, in.Take(count * width, "list"));
  return GgufNumbers{type,
                     std::string(data, static_cast<size_t>(count * width))};
}

absl::StatusOr<GgufValue> ReadValue(Cursor& in, const std::string& key) {
  COX_ASSIGN_OR_RETURN(const uint32_t type, in.Number<uint32_t>("value type"));
  if (type == kString) {
    COX_ASSIGN_OR_RETURN(std::string text,
                         in.String("string", kMaxGgufHeaderBytes));
    return text;
  }
  if (type == kArray) return ReadList(in, key);
  const uint64_t width = ScalarBytes(type);
  if (width == 0) {
    return Bad(absl::StrCat("key '", key, "': unknown value type ", type));
  }
  COX_ASSIGN_OR_RETURN(const char* data, in.Take(width, "value"));
  return ScalarValue(type, data);
}

// Offsets are relative to the data section until it is known.
absl::StatusOr<GgufTensor> ReadTensor(Cursor& in) {
  GgufTensor tensor;
  COX_ASSIGN_OR_RETURN(tensor.name, in.String("tensor name", kMaxKeyBytes));
  const auto bad = [&tensor](const std::string& what) {
    return Bad(absl::StrCat("tensor '", tensor.name, "': ", what));
  };
  COX_ASSIGN_OR_RETURN(const uint32_t dims, in.Number<uint32_t>("dimensions"));
  if (dims < 1 || dims > kMaxDimensions) {
    return bad(absl::StrCat("expected 1 to ", kMaxDimensions,
                            " dimensions, found ", dims));
  }
  uint64_t elements = 1;
  for (uint32_t i = 0; i < dims; ++i) {
    COX_ASSIGN_OR_RETURN(const uint64_t size, in.Number<uint64_t>("shape"));
    // Below 2^48 elements the size in bytes cannot overflow either.
    if (size < 1 || size >> 48 != 0 || elements > (uint64_t{1} << 48) / size) {
      return bad(
          absl::StrCat("dimension ", i, " of ", size, " is not possible"));
    }
    elements *= size;
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  COX_ASSIGN_OR_RETURN(const uint32_t type, in.Number<uint32_t>("tensor type"));
  const GgufTypeInfo* info = FindGgufType(type);
  if (info == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "gguf: tensor '", tensor.name, "': type ", type, " is not read (F32, ",
        "F16, BF16, Q8_0, Q4_0 and Q4_1 are)"));
  }
  tensor.type = info->type;
  // The file lists the fastest dimension first; blocks lie along it.
  if (tensor.shape.front() % info->block_elements != 0) {
    return bad(absl::StrCat("rows of ", tensor.shape.front(),
                            " elements are not whole blocks of ",
                            std::string(info->name)));
  }
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  tensor.bytes = elements / static_cast<uint64_t>(info->block_elements) *
                 static_cast<uint64_t>(info->block_bytes);
  COX_ASSIGN_OR_RETURN(tensor.offset, in.Number<uint64_t>("tensor offset"));
  return tensor;
}

absl::StatusOr<uint64_t> AlignmentOf(const GgufHeader& header) {
  COX_ASSIGN_OR_RETURN(const std::optional<int64_t> found,
                       header.Integer("general.alignment"));
  const int64_t value = found.value_or(kDefaultAlignment);
  if (value < 1 || static_cast<uint64_t>(value) > kMaxAlignment ||
      !std::has_single_bit(static_cast<uint64_t>(value))) {
    return Bad(absl::StrCat("general.alignment: expected a power of two up to ",
                            kMaxAlignment, ", found ", value));
  }
  return static_cast<uint64_t>(value);
}

// Makes offsets absolute; none may overlap another or leave the file.
absl::Status PlaceTensors(uint64_t alignment, uint64_t file_size,
                          GgufHeader& header) {
  for (GgufTensor& tensor : header.tensors) {
    const auto bad = [&tensor](const std::string& what) {
      return Bad(absl::StrCat("tensor '", tensor.name, "': ", what));
    };
    if (tensor.offset % alignment != 0) {
      return bad(absl::StrCat("offset ", tensor.offset, " is no multiple of ",
                              alignment));
    }
    const uint64_t room =
        file_size > header.data_offset ? file_size - header.data_offset : 0;
    if (tensor.offset > room || tensor.bytes > room - tensor.offset) {
      return bad(absl::StrCat(tensor.bytes, " bytes at ", tensor.offset,
                              " of a data section of ", room));
    }
    tensor.offset += header.data_offset;
  }
  std::vector<const GgufTensor*> by_offset;
  for (const GgufTensor& tensor : header.tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const GgufTensor* a, const GgufTensor* b) {
              return a->offset < b->offset;
            });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const GgufTensor& before = *by_offset[i - 1];
    if (by_offset[i]->offset < before.offset + before.bytes) {
      return Bad(absl::StrCat("tensors '", before.name, "' and '",
                              by_offset[i]->name, "' overlap"));
    }
  }
  std::sort(
      header.tensors.begin(), header.tensors.end(),
      [](const GgufTensor& a, const GgufTensor& b) { return a.name < b.name; });
  return absl::OkStatus();
}

absl::Status CheckVersion(Cursor& in) {
  COX_ASSIGN_OR_RETURN(const char* magic, in.Take(kMagic.size(), "magic"));
  if (std::string_view(magic, kMagic.size()) != kMagic) {
    return Bad("the file does not begin with 'GGUF'");
  }
  COX_ASSIGN_OR_RETURN(const uint32_t version, in.Number<uint32_t>("version"));
  if (version != 2 && version != 3) {
    return Bad(absl::StrCat("expected version 2 or 3, found ", version,
                            version > 0xffff ? " (a big-endian file?)" : ""));
  }
  return absl::OkStatus();
}

absl::Status WrongType(const std::string& key, std::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("gguf: key '", key, "': expected ", std::string(expected)));
}

absl::StatusOr<int64_t> ToInteger(const std::string& key,
                                  const GgufValue& value) {
  if (const auto* i = std::get_if<int64_t>(&value)) return *i;
  const auto* u = std::get_if<uint64_t>(&value);
  if (u == nullptr || *u > uint64_t{std::numeric_limits<int64_t>::max()}) {
    return WrongType(key, "an integer below 2^63");
  }
  return static_cast<int64_t>(*u);
}

float HalfAt(const char* bytes) { return F16ToFloat(Load<uint16_t>(bytes)); }

// Low nibbles are elements 0..15 of the block, high ones 16..31.
template <typename F>
void EachNibble(const char* bytes, float* out, F value) {
  for (int64_t i = 0; i < kBlock / 2; ++i) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    out[i] = value(byte & 15);
    out[i + kBlock / 2] = value(byte >> 4);
  }
}

}  // namespace

const GgufTypeInfo* FindGgufType(uint32_t type) {
  for (const GgufTypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == type) return &info;
  }
  return nullptr;
}

absl::Status DequantizeGguf(GgufType type, std::string_view data,
                            std::span<float> out) {
  if (type == GgufType::kF32) return ConvertToFloat(DType::kF32, data, out);
  if (type == GgufType::kF16) return ConvertToFloat(DType::kF16, data, out);
  if (type == GgufType::kBF16) return ConvertToFloat(DType::kBF16, data, out);
  const GgufTypeInfo& info = *FindGgufType(static_cast<uint32_t>(type));
  const auto width = static_cast<size_t>(info.block_bytes);
  if (out.size() % kBlock != 0 || data.size() != out.size() / kBlock * width) {
    return absl::InvalidArgumentError(
        absl::StrCat("gguf: ", data.size(), " bytes are not ", out.size(),
                     " elements of ", std::string(info.name)));
  }
  const char* block = data.data();
  for (size_t at = 0; at < out.size(); at += kBlock, block += width) {
    float* to = out.data() + at;
    const float scale = HalfAt(block);
    if (type == GgufType::kQ4_0) {
      EachNibble(block + 2, to,
                 [scale](int q) { return scale * static_cast<float>(q - 8); });
    } else if (type == GgufType::kQ4_1) {
      // A 4-bit by 11-bit product is exact: a fused sum rounds the same.
      EachNibble(block + 4, to, [scale, low = HalfAt(block + 2)](int q) {
        return scale * static_cast<float>(q) + low;
      });
    } else {
      for (int64_t i = 0; i < kBlock; ++i) {
        to[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<int64_t>> GgufHeader::Integer(
    const std::string& key) const {
  const auto it = values.find(key);
  if (it == values.end()) return std::nullopt;
  COX_ASSIGN_OR_RETURN(const int64_t value, ToInteger(key, it->second));
  return value;
}

absl::StatusOr<std::optional<double>> GgufHeader::Number(
    const std::string& key) const {
  const auto it = values.find(key);
  if (it == values.end()) return std::nullopt;
  if (const auto* number = std::get_if<double>(&it->second)) return *number;
  COX_ASSIGN_OR_RETURN(const int64_t value, ToInteger(key, it->second));
  return static_cast<double>(value);
}

absl::StatusOr<std::optional<bool>> GgufHeader::Flag(
    const std::string& key) const {
  const auto it = values.find(key);
  if (it == values.end()) return std::nullopt;
  const auto* flag = std::get_if<bool>(&it->second);
  if (flag == nullptr) return WrongType(key, "true or false");
  return *flag;
}

absl::StatusOr<std::optional<std::string>> GgufHeader::Text(
    const std::string& key) const {
  const auto it = values.find(key);
  if (it == values.end()) return std::nullopt;
  const auto* text = std::get_if<std::string>(&it->second);
  if (text == nullptr) return WrongType(key, "a string");
  return *text;
}

absl::StatusOr<const std::vector<std::string>*> GgufHeader::Texts(
    const std::string& key) const {
  const auto it = values.find(key);
  if (it == values.end()) return nullptr;
  const auto* list = std::get_if<std::vector<std::string>>(&it->second);
  if (list == nullptr) return WrongType(key, "a list of strings");
  return list;
}

absl::StatusOr<std::optional<std::vector<int64_t>>> GgufHeader::Integers(
    const std::string& key) const {
  const auto it = values.find(key);
  if (it == values.end()) return std::nullopt;
  const auto* list = std::get_if<GgufNumbers>(&it->second);
  if (list == nullptr) return WrongType(key, "a list of integers");
  const auto width = static_cast<size_t>(ScalarBytes(list->type));
  std::vector<int64_t> out;
  out.reserve(list->bytes.size() / width);
  for (size_t at = 0; at < list->bytes.size(); at += width) {
    COX_ASSIGN_OR_RETURN(
        const int64_t value,
        ToInteger(key, ScalarValue(list->type, list->bytes.data() + at)));
    out.push_back(value);
  }
  return out;
}

absl::StatusOr<GgufHeader> ParseGgufHeader(std::string_view prefix,
                                           uint64_t file_size) {
  Cursor in(prefix, file_size);
  COX_RETURN_IF_ERROR(CheckVersion(in));
  // The smallest descriptions: name length, dimensions, one size, type, offset;
  // key length, type, one byte.
  COX_ASSIGN_OR_RETURN(const uint64_t tensors, in.Count("tensors", 32));
  COX_ASSIGN_OR_RETURN(const uint64_t pairs, in.Count("keys", 13));
  GgufHeader header;
  for (uint64_t i = 0; i < pairs; ++i) {
    COX_ASSIGN_OR_RETURN(std::string key, in.String("key", kMaxKeyBytes));
    COX_ASSIGN_OR_RETURN(GgufValue value, ReadValue(in, key));
    const auto [place, added] =
        header.values.emplace(std::move(key), std::move(value));
    if (!added) return Bad(absl::StrCat("key '", place->first, "' twice"));
  }
  std::set<std::string> names;
  for (uint64_t i = 0; i < tensors; ++i) {
    COX_ASSIGN_OR_RETURN(GgufTensor tensor, ReadTensor(in));
    if (!names.insert(tensor.name).second) {
      return Bad(absl::StrCat("tensor '", tensor.name, "' twice"));
    }
    header.tensors.push_back(std::move(tensor));
  }
  COX_ASSIGN_OR_RETURN(const uint64_t alignment, AlignmentOf(header));
  header.data_offset = (in.position() + alignment - 1) / alignment * alignment;
  COX_RETURN_IF_ERROR(PlaceTensors(alignment, file_size, header));
  return header;
}

absl::StatusOr<GgufHeader> ReadGgufHeader(Fs& fs, const std::string& path) {
  COX_ASSIGN_OR_RETURN(const uint64_t file_size, fs.FileSize(path));
  const uint64_t most = std::min(file_size, kMaxGgufHeaderBytes);
  for (uint64_t bytes = std::min(most, kFirstRead);;
       bytes = std::min(most, bytes * 2)) {
    COX_ASSIGN_OR_RETURN(const std::string prefix,
                         fs.ReadRange(path, 0, bytes));
    absl::StatusOr<GgufHeader> header = ParseGgufHeader(prefix, file_size);
    if (header.ok()) return header;
    if (!absl::IsOutOfRange(header.status())) {
      return Annotate(header.status(), path);
    }
    if (bytes == most) {
      return absl::DataLossError(absl::StrCat(
          path, ": gguf: the header is longer than ", most, " bytes"));
    }
  }
}

}  // namespace cox
