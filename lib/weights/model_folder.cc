#include "lib/weights/model_folder.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_join.h"
#include "lib/weights/convert.h"
#include "lib/weights/gguf_model.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kTokenizerFile[] = "tokenizer.json";
constexpr char kIndexFile[] = "model.safetensors.index.json";
// Larger than any real file of its kind; read before memory is taken.
constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;
constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;
constexpr uint64_t kMaxTokenizerBytes = uint64_t{256} << 20;

absl::StatusOr<std::string> ReadBounded(Fs& fs, const std::string& path,
                                        uint64_t max_bytes) {
  COX_ASSIGN_OR_RETURN(const uint64_t size, fs.FileSize(path));
  if (size > max_bytes) {
    return absl::DataLossError(
        absl::StrCat(path, ": ", size, " bytes, at most ", max_bytes));
  }
  return fs.ReadAll(path);
}

absl::StatusOr<std::optional<std::string>> ReadIfPresent(
    Fs& fs, const std::string& path, uint64_t max_bytes) {
  if (!fs.Exists(path)) return std::nullopt;
  COX_ASSIGN_OR_RETURN(std::string text, ReadBounded(fs, path, max_bytes));
  return std::optional<std::string>(std::move(text));
}

// Newer folders keep the template in a file of its own, which counts.
void SetChatTemplate(const std::string& chat,
                     std::optional<std::string>& tokenizer_config) {
  Json json = Json::parse(tokenizer_config.value_or("{}"), /*cb=*/nullptr,
                          /*allow_exceptions=*/false);
  if (!json.is_object()) return;  // its reader will say so
  json["chat_template"] = chat;
  tokenizer_config =
      json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// A read beyond the end means the file changed or its size was wrong.
absl::StatusOr<std::string> ReadExactly(Fs& fs, const std::string& path,
                                        uint64_t offset, uint64_t length) {
  absl::StatusOr<std::string> data = fs.ReadRange(path, offset, length);
  if (absl::IsOutOfRange(data.status())) {
    return absl::DataLossError(data.status().message());
  }
  return data;
}

// Returns the names of the tensors added.
absl::StatusOr<std::set<std::string>> ReadSafetensorsFile(
    Fs& fs, const std::string& path, ModelFolder& folder) {
  COX_ASSIGN_OR_RETURN(const uint64_t file_size, fs.FileSize(path));
  COX_ASSIGN_OR_RETURN(
      const std::string first8,
      ReadExactly(fs, path, 0, std::min<uint64_t>(8, file_size)));
  const absl::StatusOr<uint64_t> header_end =
      SafetensorsHeaderEnd(first8, file_size);
  if (!header_end.ok()) return Annotate(header_end.status(), path);
  COX_ASSIGN_OR_RETURN(const std::string prefix,
                       ReadExactly(fs, path, 0, *header_end));
  const absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(prefix, file_size);
  if (!header.ok()) return Annotate(header.status(), path);
  std::set<std::string> names;
  for (const SafetensorsEntry& entry : header->entries) {
    COX_ASSIGN_OR_RETURN(
        std::string data,
        ReadExactly(fs, path, header->data_offset + entry.begin,
                    entry.end - entry.begin));
    const bool added =
        folder.tensors
            .emplace(entry.name,
                     RawTensor{entry.dtype, entry.shape, std::move(data)})
            .second;
    if (!added) {
      return absl::DataLossError(absl::StrCat(path, ": tensor '", entry.name,
                                              "' is in another shard already"));
    }
    names.insert(entry.name);
  }
  return names;
}

// A plain file name: no separator, so it cannot leave the folder.
bool IsPlainShardName(const std::string& name) {
  return name.ends_with(".safetensors") && name.front() != '.' &&
         name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

// shard -> names of its tensors.
absl::StatusOr<std::map<std::string, std::set<std::string>>> ParseIndex(
    const std::string& path, const std::string& text) {
  const auto bad = [&path](const std::string& what) {
    return absl::DataLossError(absl::StrCat(path, ": ", what));
  };
  const Json json = Json::parse(text, /*cb=*/nullptr,
                                /*allow_exceptions=*/false);
  if (!json.is_object()) return bad("not a JSON object");
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object()) return bad("no weight_map");
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      return bad(absl::StrCat("tensor '", tensor, "': shard is not a string"));
    }
    const std::string& name = *shard.get_ptr<const std::string*>();
    if (!IsPlainShardName(name)) {
      return bad(absl::StrCat("tensor '", tensor, "': shard name '", name,
                              "' is not a file of this folder"));
    }
    shards[name].insert(tensor);
  }
  return shards;
}

absl::Status ReadShards(Fs& fs, const std::string& dir, ModelFolder& folder) {
  const std::string index_path = JoinPath(dir, kIndexFile);
  COX_ASSIGN_OR_RETURN(const std::string text,
                       ReadBounded(fs, index_path, kMaxIndexBytes));
  COX_ASSIGN_OR_RETURN(const auto shards, ParseIndex(index_path, text));
  for (const auto& [shard, expected] : shards) {
    const std::string path = JoinPath(dir, shard);
    COX_ASSIGN_OR_RETURN(const std::set<std::string> found,
                         ReadSafetensorsFile(fs, path, folder));
    for (const std::string& name : expected) {
      if (found.contains(name)) continue;
      return absl::DataLossError(absl::StrCat(
          path, ": tensor '", name, "' is in the index but not in the file"));
    }
  }
  return absl::OkStatus();
}

// Hugging Face writes the trunk's names with or without these.
std::string_view WithoutFamilyPrefix(std::string_view name) {
  for (const std::string_view prefix : {"transformer.", "model."}) {
    if (name.starts_with(prefix)) return name.substr(prefix.size());
  }
  return name;
}

// Buffers and copies that carry no weights of their own
// (docs/algorithms.md §12); consulted only for names the layout lacks.
bool IsIgnorable(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".rotary_emb.inv_freq") || name == "lm_head.weight";
}

using TensorIndex = std::map<std::string_view,
                             std::map<std::string, RawTensor>::const_iterator>;

absl::StatusOr<TensorIndex> IndexByPlainName(const ModelFolder& folder) {
  TensorIndex index;
  for (auto it = folder.tensors.begin(); it != folder.tensors.end(); ++it) {
    const auto [place, added] =
        index.emplace(WithoutFamilyPrefix(it->first), it);
    if (!added) {
      return absl::FailedPreconditionError(
          absl::StrCat("model folder: '", it->first, "' and '",
                       place->second->first, "' are the same tensor"));
    }
  }
  return index;
}

}  // namespace

absl::StatusOr<ModelFolder> ReadModelTexts(Fs& fs, const std::string& dir) {
  if (IsGgufPath(dir)) return ReadGgufTexts(fs, dir);
  ModelFolder folder;
  COX_ASSIGN_OR_RETURN(
      folder.config_json,
      ReadBounded(fs, JoinPath(dir, "config.json"), kMaxConfigBytes));
  COX_ASSIGN_OR_RETURN(
      folder.tokenizer_json,
      ReadIfPresent(fs, JoinPath(dir, kTokenizerFile), kMaxTokenizerBytes));
  COX_ASSIGN_OR_RETURN(folder.tokenizer_config_json,
                       ReadIfPresent(fs, JoinPath(dir, "tokenizer_config.json"),
                                     kMaxConfigBytes));
  COX_ASSIGN_OR_RETURN(
      const std::optional<std::string> chat,
      ReadIfPresent(fs, JoinPath(dir, "chat_template.jinja"), kMaxConfigBytes));
  if (chat.has_value()) {
    SetChatTemplate(*chat, folder.tokenizer_config_json);
  }
  COX_ASSIGN_OR_RETURN(
      folder.generation_config_json,
      ReadIfPresent(fs, JoinPath(dir, "generation_config.json"),
                    kMaxConfigBytes));
  return folder;
}

absl::StatusOr<std::string> ReadTokenizerJson(Fs& fs, const std::string& path) {
  if (IsGgufPath(path)) {
    COX_ASSIGN_OR_RETURN(ModelFolder folder, ReadGgufTexts(fs, path));
    return *std::move(folder.tokenizer_json);
  }
  const std::string inside = JoinPath(path, kTokenizerFile);
  return ReadBounded(fs, fs.Exists(inside) ? inside : path, kMaxTokenizerBytes);
}

absl::StatusOr<ModelFolder> ReadModelFolder(Fs& fs, const std::string& dir) {
  if (IsGgufPath(dir)) return ReadGgufModel(fs, dir);
  COX_ASSIGN_OR_RETURN(ModelFolder folder, ReadModelTexts(fs, dir));
  const std::string single = JoinPath(dir, kSingleFile);
  if (fs.Exists(single)) {
    COX_RETURN_IF_ERROR(ReadSafetensorsFile(fs, single, folder).status());
    return folder;
  }
  if (fs.Exists(JoinPath(dir, kIndexFile))) {
    COX_RETURN_IF_ERROR(ReadShards(fs, dir, folder));
    return folder;
  }
  if (fs.Exists(JoinPath(dir, "pytorch_model.bin"))) {
    return absl::FailedPreconditionError(absl::StrCat(
        dir, ": only pytorch_model.bin; pickles are never read, convert it to ",
        "safetensors"));
  }
  return absl::NotFoundError(
      absl::StrCat(dir, ": neither ", kSingleFile, " nor ", kIndexFile));
}

absl::StatusOr<std::shared_ptr<const Snapshot>> SnapshotFromFolder(
    const ModelFolder& folder, const Manifest& layout) {
  COX_RETURN_IF_ERROR(layout.Validate());
  COX_ASSIGN_OR_RETURN(TensorIndex index, IndexByPlainName(folder));
  // Everything is checked before the arena is allocated.
  std::vector<const RawTensor*> sources;
  for (const TensorInfo& tensor : layout.tensors) {
    const auto found = index.find(WithoutFamilyPrefix(tensor.name));
    if (found == index.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("model folder: tensor '", tensor.name, "' is missing"));
    }
    const RawTensor& source = found->second->second;
    if (source.shape != tensor.shape) {
      return absl::FailedPreconditionError(
          absl::StrCat("model folder: tensor '", tensor.name,
                       "': expected shape [", absl::StrJoin(tensor.shape, ","),
                       "], found [", absl::StrJoin(source.shape, ","), "]"));
    }
    if (tensor.dtype != DType::kF32) {
      return absl::InvalidArgumentError(
          absl::StrCat("layout: tensor '", tensor.name, "' is not float32"));
    }
    sources.push_back(&source);
    index.erase(found);
  }
  for (const auto& [plain, place] : index) {
    if (IsIgnorable(plain)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("model folder: tensor '", place->first,
                     "' has no place in this architecture"));
  }
  auto arena = std::make_shared<Arena>(layout.arena_bytes);
  for (size_t i = 0; i < sources.size(); ++i) {
    const TensorInfo& tensor = layout.tensors[i];
    const absl::Status converted =
        ConvertToFloat(sources[i]->dtype, sources[i]->data,
                       arena->floats().subspan(
                           static_cast<size_t>(tensor.offset / sizeof(float)),
                           static_cast<size_t>(tensor.bytes / sizeof(float))));
    if (!converted.ok()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "model folder: tensor '", tensor.name, "': ", converted.message()));
    }
  }
  return MakeSnapshot(layout, std::move(arena));
}

}  // namespace cox
