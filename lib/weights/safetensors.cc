#include "lib/weights/safetensors.h"

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_join.h"
#include "lib/weights/json_text.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr char kMetadataKey[] = "__metadata__";

absl::Status Bad(const std::string& what) {
  return absl::DataLossError(absl::StrCat("safetensors: ", what));
}

// Rejects what nlohmann's tree would hide (duplicate keys) or what would make
// it large (deep nesting: values below depth 3 are dropped unbuilt).
class StructureCheck {
 public:
  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth == 1) inner_keys_.clear();
        if (depth > 2) problem_ = "JSON nested too deeply";
        return depth <= 2;
      case Json::parse_event_t::key: {
        std::set<std::string>& keys = depth == 1 ? outer_keys_ : inner_keys_;
        const std::string& key = *parsed.get_ptr<const std::string*>();
        if (depth <= 2 && !keys.insert(key).second) {
          problem_ = absl::StrCat("key '", key, "' occurs twice");
        }
        return true;
      }
      default:
        return true;
    }
  }
  const std::string& problem() const { return problem_; }

 private:
  std::set<std::string> outer_keys_;
  std::set<std::string> inner_keys_;
  std::string problem_;
};

absl::StatusOr<Json> ParseStructure(std::string_view text) {
  if (text.empty() || text.front() != '{') {
    return Bad("the header does not start with '{'");
  }
  StructureCheck check;
  Json json = Json::parse(
      text.begin(), text.end(),
      [&check](int depth, Json::parse_event_t event, Json& parsed) {
        return check(depth, event, parsed);
      },
      /*allow_exceptions=*/false);
  if (!json.is_object()) return Bad("the header is not a JSON object");
  if (!check.problem().empty()) return Bad(check.problem());
  return json;
}

absl::Status ReadMetadata(const Json& json,
                          std::map<std::string, std::string>& metadata) {
  if (json.is_null()) return absl::OkStatus();
  if (!json.is_object()) return Bad("__metadata__ is not an object");
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) {
      return Bad(absl::StrCat("__metadata__ '", key, "' is not a string"));
    }
    metadata.emplace(key, value.get<std::string>());
  }
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsEntry> ReadEntry(const std::string& name,
                                           const Json& json) {
  const auto bad = [&name](const std::string& what) {
    return Bad(absl::StrCat("tensor '", name, "': ", what));
  };
  if (!json.is_object()) return bad("not an object");
  const auto dtype = json.find("dtype");
  const auto shape = json.find("shape");
  const auto offsets = json.find("data_offsets");
  if (dtype == json.end() || !dtype->is_string()) return bad("no dtype");
  if (shape == json.end() || !shape->is_array()) return bad("no shape");
  if (offsets == json.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return bad("data_offsets are not two whole numbers");
  }
  SafetensorsEntry entry;
  entry.name = name;
  const absl::StatusOr<DType> parsed =
      ParseDType(*dtype->get_ptr<const std::string*>());
  if (!parsed.ok()) return bad(std::string(parsed.status().message()));
  entry.dtype = *parsed;
  for (const Json& dimension : *shape) {
    if (!dimension.is_number_unsigned() ||
        dimension.get<uint64_t>() >
            uint64_t{std::numeric_limits<int64_t>::max()}) {
      return bad("a dimension is not a whole number below 2^63");
    }
    entry.shape.push_back(dimension.get<int64_t>());
  }
  entry.begin = (*offsets)[0].get<uint64_t>();
  entry.end = (*offsets)[1].get<uint64_t>();
  if (entry.begin > entry.end) {
    return bad(
        absl::StrCat("begins at ", entry.begin, ", ends at ", entry.end));
  }
  const absl::StatusOr<uint64_t> bytes = TensorBytes(entry.dtype, entry.shape);
  if (!bytes.ok()) return bad(std::string(bytes.status().message()));
  if (*bytes != entry.end - entry.begin) {
    return bad(absl::StrCat("shape [", absl::StrJoin(entry.shape, ","),
                            "] needs ", *bytes, " bytes, found ",
                            entry.end - entry.begin));
  }
  return entry;
}

// Sorted entries must cover [0, data_bytes) without hole or overlap.
absl::Status CheckCoverage(const std::vector<SafetensorsEntry>& entries,
                           uint64_t data_bytes) {
  uint64_t end = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != end) {
      return Bad(absl::StrCat(
          "tensor '", entry.name, "' begins at ", entry.begin, ": ",
          entry.begin > end ? "hole" : "overlap", " after ", end));
    }
    end = entry.end;
  }
  if (end != data_bytes) {
    return Bad(absl::StrCat("tensors end at ", end, ", the data section has ",
                            data_bytes, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<uint64_t> SafetensorsHeaderEnd(std::string_view first8,
                                              uint64_t file_size) {
  if (file_size < kLengthBytes) {
    return Bad(
        absl::StrCat("a file of ", file_size, " bytes has no header length"));
  }
  if (first8.size() < kLengthBytes) {
    return absl::InvalidArgumentError("safetensors: prefix below 8 bytes");
  }
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(first8[i]);
  }
  if (length > kMaxSafetensorsHeaderBytes ||
      length > file_size - kLengthBytes) {
    return Bad(absl::StrCat("header length ", length, " in a file of ",
                            file_size, " bytes (limit ",
                            kMaxSafetensorsHeaderBytes, ")"));
  }
  return kLengthBytes + length;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(
    std::string_view prefix, uint64_t file_size) {
  COX_ASSIGN_OR_RETURN(const uint64_t header_end,
                       SafetensorsHeaderEnd(prefix, file_size));
  if (prefix.size() < header_end) {
    return absl::InvalidArgumentError(
        absl::StrCat("safetensors: prefix of ", prefix.size(),
                     " bytes, the header ends at ", header_end));
  }
  COX_ASSIGN_OR_RETURN(
      const Json json,
      ParseStructure(prefix.substr(
          kLengthBytes, static_cast<size_t>(header_end - kLengthBytes))));
  SafetensorsHeader header;
  header.data_offset = header_end;
  for (const auto& [key, value] : json.items()) {
    if (key == kMetadataKey) {
      COX_RETURN_IF_ERROR(ReadMetadata(value, header.metadata));
      continue;
    }
    COX_ASSIGN_OR_RETURN(SafetensorsEntry entry, ReadEntry(key, value));
    header.entries.push_back(std::move(entry));
  }
  // An empty tensor may share its offset with the one after it.
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::tie(a.begin, a.end, a.name) <
                     std::tie(b.begin, b.end, b.name);
            });
  COX_RETURN_IF_ERROR(CheckCoverage(header.entries, file_size - header_end));
  return header;
}

std::string SerializeSafetensorsHeader(
    const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata) {
  std::string json = "{";
  if (!metadata.empty()) {
    AppendJsonString(kMetadataKey, json);
    char separator = '{';
    json += ':';
    for (const auto& [key, value] : metadata) {
      json += separator;
      separator = ',';
      AppendJsonString(key, json);
      json += ':';
      AppendJsonString(value, json);
    }
    json += '}';
  }
  for (const SafetensorsEntry& entry : entries) {
    if (json.size() > 1) json += ',';
    AppendJsonString(entry.name, json);
    json += ":{\"dtype\":";
    AppendJsonString(DTypeName(entry.dtype), json);
    absl::StrAppend(&json, ",\"shape\":[", absl::StrJoin(entry.shape, ","),
                    "],\"data_offsets\":[", entry.begin, ",", entry.end, "]}");
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string out;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    out += static_cast<char>(uint64_t{json.size()} >> (8 * i) & 0xff);
  }
  return out + json;
}

}  // namespace cox
