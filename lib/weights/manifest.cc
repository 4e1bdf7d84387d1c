#include "lib/weights/manifest.h"

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_set>

#include "absl/strings/str_join.h"
#include "lib/base/hash.h"
#include "lib/weights/json_text.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kAlignment = 64;
constexpr size_t kMaxTensors = size_t{1} << 20;
constexpr size_t kMaxRank = 8;
// Far above any model, low enough that rounding up never overflows.
constexpr uint64_t kMaxArenaBytes = uint64_t{1} << 62;

struct DTypeRow {
  DType dtype;
  std::string_view name;
  int64_t bytes;
};
constexpr std::array<DTypeRow, 10> kDTypes = {{
    {DType::kF32, "F32", 4},
    {DType::kBF16, "BF16", 2},
    {DType::kF16, "F16", 2},
    {DType::kF64, "F64", 8},
    {DType::kI64, "I64", 8},
    {DType::kI32, "I32", 4},
    {DType::kI16, "I16", 2},
    {DType::kI8, "I8", 1},
    {DType::kU8, "U8", 1},
    {DType::kBool, "BOOL", 1},
}};

const DTypeRow& RowOf(DType dtype) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == dtype) return row;
  }
  CheckFailed(__FILE__, __LINE__, "unknown DType");
}

uint64_t RoundUp(uint64_t value) {
  return (value + kAlignment - 1) / kAlignment * kAlignment;
}

bool IsSha256Hex(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

absl::Status Bad(const std::string& name, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat("manifest: tensor '", name, "': ", what));
}

absl::Status ValidateTensor(const TensorInfo& tensor, uint64_t previous_end) {
  if (tensor.name.empty()) return Bad(tensor.name, "empty name");
  if (tensor.shape.size() > kMaxRank) {
    return Bad(tensor.name,
               absl::StrCat("rank ", tensor.shape.size(), ", at most 8"));
  }
  const absl::StatusOr<uint64_t> bytes =
      TensorBytes(tensor.dtype, tensor.shape);
  if (!bytes.ok()) {
    return Bad(tensor.name, std::string(bytes.status().message()));
  }
  if (*bytes != tensor.bytes) {
    return Bad(tensor.name, absl::StrCat("shape needs ", *bytes,
                                         " bytes, found ", tensor.bytes));
  }
  if (tensor.offset % kAlignment != 0) {
    return Bad(tensor.name, absl::StrCat("offset ", tensor.offset,
                                         " is not a multiple of 64"));
  }
  if (tensor.offset < previous_end) {
    return Bad(tensor.name,
               absl::StrCat("offset ", tensor.offset, " lies before ",
                            previous_end, ", the end of the one before"));
  }
  if (tensor.offset > kMaxArenaBytes ||
      tensor.bytes > kMaxArenaBytes - tensor.offset) {
    return Bad(tensor.name, "ends beyond any memory");
  }
  if (!tensor.sha256.empty() && !IsSha256Hex(tensor.sha256)) {
    return Bad(tensor.name, "sha256 is not 64 lower-case hex digits");
  }
  return absl::OkStatus();
}

absl::Status NotCanonical(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("manifest text: ", what));
}

const std::string* StringField(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string()) return nullptr;
  return it->get_ptr<const std::string*>();
}

const uint64_t* UnsignedField(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_unsigned()) return nullptr;
  return it->get_ptr<const uint64_t*>();
}

absl::StatusOr<TensorInfo> TensorFromJson(const Json& json) {
  if (!json.is_object()) return NotCanonical("a tensor is not an object");
  const std::string* name = StringField(json, "name");
  const std::string* dtype = StringField(json, "dtype");
  const std::string* sha256 = StringField(json, "sha256");
  const uint64_t* offset = UnsignedField(json, "offset");
  const uint64_t* bytes = UnsignedField(json, "bytes");
  const auto shape = json.find("shape");
  if (name == nullptr || dtype == nullptr || sha256 == nullptr ||
      offset == nullptr || bytes == nullptr || shape == json.end() ||
      !shape->is_array()) {
    return NotCanonical("a tensor lacks a field");
  }
  TensorInfo tensor;
  tensor.name = *name;
  tensor.sha256 = *sha256;
  tensor.offset = *offset;
  tensor.bytes = *bytes;
  const absl::StatusOr<DType> parsed = ParseDType(*dtype);
  if (!parsed.ok()) return NotCanonical(parsed.status().message());
  tensor.dtype = *parsed;
  for (const Json& dimension : *shape) {
    if (!dimension.is_number_unsigned() ||
        dimension.get<uint64_t>() >
            uint64_t{std::numeric_limits<int64_t>::max()}) {
      return NotCanonical("a dimension is not a whole number");
    }
    tensor.shape.push_back(dimension.get<int64_t>());
  }
  return tensor;
}

}  // namespace

int64_t DTypeBytes(DType dtype) { return RowOf(dtype).bytes; }

std::string_view DTypeName(DType dtype) { return RowOf(dtype).name; }

absl::StatusOr<DType> ParseDType(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown dtype '", absl::string_view(name.data(), name.size()), "'"));
}

absl::StatusOr<uint64_t> TensorBytes(DType dtype,
                                     const std::vector<int64_t>& shape) {
  uint64_t product = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0 ||
        __builtin_mul_overflow(product, static_cast<uint64_t>(dimension),
                               &product)) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape [", absl::StrJoin(shape, ","),
                       "] is negative or its product overflows"));
    }
  }
  if (__builtin_mul_overflow(product, static_cast<uint64_t>(DTypeBytes(dtype)),
                             &product)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shape [", absl::StrJoin(shape, ","), "]: size overflows"));
  }
  return product;
}

std::string Manifest::CanonicalText() const {
  std::string text =
      absl::StrCat("{\"arena_bytes\":", arena_bytes, ",\"config_json\":");
  AppendJsonString(config_json, text);
  text += ",\"model\":";
  AppendJsonString(model, text);
  text += ",\"tensors\":[";
  bool first = true;
  for (const TensorInfo& tensor : tensors) {
    if (!first) text += ',';
    first = false;
    absl::StrAppend(&text, "{\"bytes\":", tensor.bytes, ",\"dtype\":");
    AppendJsonString(DTypeName(tensor.dtype), text);
    text += ",\"name\":";
    AppendJsonString(tensor.name, text);
    absl::StrAppend(&text, ",\"offset\":", tensor.offset, ",\"sha256\":");
    AppendJsonString(tensor.sha256, text);
    absl::StrAppend(&text, ",\"shape\":[", absl::StrJoin(tensor.shape, ","),
                    "]}");
  }
  text += "]}";
  return text;
}

std::string Manifest::ContentHash() const {
  for (const TensorInfo& tensor : tensors) {
    COX_CHECK(!tensor.sha256.empty());
  }
  return Sha256Hex(CanonicalText());
}

absl::StatusOr<Manifest> Manifest::FromCanonicalText(std::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), /*cb=*/nullptr,
                                /*allow_exceptions=*/false);
  if (!json.is_object()) return NotCanonical("not a JSON object");
  const std::string* model = StringField(json, "model");
  const std::string* config = StringField(json, "config_json");
  const uint64_t* arena_bytes = UnsignedField(json, "arena_bytes");
  const auto tensors = json.find("tensors");
  if (model == nullptr || config == nullptr || arena_bytes == nullptr ||
      tensors == json.end() || !tensors->is_array()) {
    return NotCanonical("a field is missing");
  }
  Manifest manifest;
  manifest.model = *model;
  manifest.config_json = *config;
  manifest.arena_bytes = *arena_bytes;
  for (const Json& tensor : *tensors) {
    COX_ASSIGN_OR_RETURN(TensorInfo info, TensorFromJson(tensor));
    manifest.tensors.push_back(std::move(info));
  }
  const absl::Status valid = manifest.Validate();
  if (!valid.ok()) return absl::DataLossError(valid.message());
  // Catches duplicate keys, unknown keys, blanks and other spellings.
  if (manifest.CanonicalText() != text) {
    return NotCanonical("not in canonical form");
  }
  return manifest;
}

absl::Status Manifest::Validate() const {
  if (tensors.size() > kMaxTensors) {
    return absl::InvalidArgumentError(absl::StrCat(
        "manifest: ", tensors.size(), " tensors, at most ", kMaxTensors));
  }
  std::unordered_set<std::string_view> names;
  uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    COX_RETURN_IF_ERROR(ValidateTensor(tensor, end));
    if (!names.insert(tensor.name).second) {
      return Bad(tensor.name, "name occurs twice");
    }
    end = tensor.offset + tensor.bytes;
  }
  if (arena_bytes != RoundUp(end)) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: arena_bytes: expected ", RoundUp(end),
                     ", found ", arena_bytes));
  }
  return absl::OkStatus();
}

Manifest LayOut(
    std::string model, std::string config_json, DType dtype,
    const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors) {
  Manifest manifest;
  manifest.model = std::move(model);
  manifest.config_json = std::move(config_json);
  uint64_t end = 0;
  for (const auto& [name, shape] : tensors) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.dtype = dtype;
    tensor.shape = shape;
    tensor.offset = RoundUp(end);
    tensor.bytes = TensorBytes(dtype, shape).value_or(0);
    if (tensor.bytes > kMaxArenaBytes - tensor.offset) tensor.bytes = 0;
    end = tensor.offset + tensor.bytes;
    manifest.tensors.push_back(std::move(tensor));
  }
  manifest.arena_bytes = RoundUp(end);
  return manifest;
}

}  // namespace cox
