// Writing half of model_folder.h.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "lib/base/hash.h"
#include "lib/weights/convert.h"
#include "lib/weights/model_folder.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kWriteElements = size_t{1} << 18;  // 1 MiB of float32

// One file, hashed while it is written.
class HashedFile {
 public:
  static absl::StatusOr<HashedFile> Create(Fs& fs, const std::string& dir,
                                           const std::string& name) {
    COX_ASSIGN_OR_RETURN(auto file,
                         fs.Create(JoinPath(dir, name), /*exclusive=*/false));
    return HashedFile(name, std::move(file));
  }
  absl::Status Append(std::string_view data) {
    sha_->Update(data);
    saved_.bytes += data.size();
    return file_->Append(data);
  }
  absl::StatusOr<SavedFile> Finish() {
    COX_RETURN_IF_ERROR(file_->Sync());
    COX_RETURN_IF_ERROR(file_->Close());
    saved_.sha256 = sha_->HexDigest();
    return saved_;
  }

 private:
  HashedFile(std::string name, std::unique_ptr<WritableFile> file)
      : file_(std::move(file)), sha_(std::make_unique<Sha256>()) {
    saved_.name = std::move(name);
  }
  std::unique_ptr<WritableFile> file_;
  std::unique_ptr<Sha256> sha_;
  SavedFile saved_;
};

absl::StatusOr<SavedFile> WriteText(Fs& fs, const std::string& dir,
                                    const std::string& name,
                                    std::string_view text) {
  COX_ASSIGN_OR_RETURN(HashedFile file, HashedFile::Create(fs, dir, name));
  COX_RETURN_IF_ERROR(file.Append(text));
  return file.Finish();
}

absl::Status AppendTensor(std::span<const float> values, DType dtype,
                          HashedFile& file) {
  if (dtype == DType::kF32) {
    return file.Append(
        {reinterpret_cast<const char*>(values.data()), values.size_bytes()});
  }
  std::vector<uint16_t> buffer;
  for (size_t done = 0; done < values.size(); done += kWriteElements) {
    const auto part =
        values.subspan(done, std::min(kWriteElements, values.size() - done));
    buffer.resize(part.size());
    std::transform(part.begin(), part.end(), buffer.begin(), FloatToBf16);
    COX_RETURN_IF_ERROR(
        file.Append({reinterpret_cast<const char*>(buffer.data()),
                     buffer.size() * sizeof(uint16_t)}));
  }
  return absl::OkStatus();
}

uint64_t StoredBytes(const TensorInfo& tensor, DType dtype) {
  return tensor.bytes / sizeof(float) *
         static_cast<uint64_t>(DTypeBytes(dtype));
}

using Shard = std::vector<const TensorInfo*>;

// Greedy, in manifest order; a tensor above the limit is a shard of its own.
std::vector<Shard> SplitIntoShards(const Manifest& manifest,
                                   const SaveFolderOptions& options) {
  std::vector<Shard> shards(1);
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : manifest.tensors) {
    const uint64_t stored = StoredBytes(tensor, options.dtype);
    if (options.max_shard_bytes && !shards.back().empty() &&
        bytes + stored > *options.max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(&tensor);
    bytes += stored;
  }
  return shards;
}

std::string ShardName(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors",
                index + 1, count);
  return name;
}

absl::StatusOr<SavedFile> WriteShard(Fs& fs, const std::string& path_and_name,
                                     const Snapshot& snapshot,
                                     const Shard& shard, DType dtype) {
  std::vector<SafetensorsEntry> entries;
  uint64_t end = 0;
  for (const TensorInfo* tensor : shard) {
    const uint64_t begin = end;
    end += StoredBytes(*tensor, dtype);
    entries.push_back({tensor->name, dtype, tensor->shape, begin, end});
  }
  COX_ASSIGN_OR_RETURN(
      HashedFile file,
      HashedFile::Create(fs, DirName(path_and_name), BaseName(path_and_name)));
  // transformers refuses files without this entry.
  COX_RETURN_IF_ERROR(
      file.Append(SerializeSafetensorsHeader(entries, {{"format", "pt"}})));
  for (const TensorInfo* tensor : shard) {
    COX_RETURN_IF_ERROR(
        AppendTensor(snapshot.arena->floats().subspan(
                         static_cast<size_t>(tensor->offset / sizeof(float)),
                         static_cast<size_t>(tensor->bytes / sizeof(float))),
                     dtype, file));
  }
  return file.Finish();
}

std::string IndexText(const std::vector<Shard>& shards, DType dtype) {
  uint64_t total = 0;
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const TensorInfo* tensor : shards[i]) {
      map[tensor->name] = ShardName(i, shards.size());
      total += StoredBytes(*tensor, dtype);
    }
  }
  Json index;
  index["metadata"]["total_size"] = total;
  index["weight_map"] = std::move(map);
  return index.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// float32 keeps the text, so that the folder reads back to the same version.
std::string ConfigText(const std::string& config_json, DType dtype) {
  if (dtype == DType::kF32) return config_json;
  Json json = Json::parse(config_json, /*cb=*/nullptr,
                          /*allow_exceptions=*/false);
  if (!json.is_object()) return config_json;
  json["torch_dtype"] = "bfloat16";
  return json.dump(2) + "\n";
}

std::string GenerationConfigText(const SaveFolderOptions& options) {
  Json json = Json::object();
  if (options.eos_ids.size() == 1) json["eos_token_id"] = options.eos_ids[0];
  if (options.eos_ids.size() > 1) json["eos_token_id"] = options.eos_ids;
  if (options.pad_id) json["pad_token_id"] = *options.pad_id;
  return json.dump(2) + "\n";
}

absl::Status CheckSaveable(const Snapshot& snapshot,
                           const SaveFolderOptions& options) {
  if (options.dtype != DType::kF32 && options.dtype != DType::kBF16) {
    return absl::InvalidArgumentError(
        "save: weights are stored as F32 or BF16");
  }
  for (const TensorInfo& tensor : snapshot.manifest.tensors) {
    if (tensor.dtype != DType::kF32) {
      return absl::InvalidArgumentError(absl::StrCat(
          "save: tensor '", tensor.name, "' of the snapshot is not float32"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<SavedFile>> SaveModelFolder(
    Fs& fs, const std::string& dir, const Snapshot& snapshot,
    const SaveFolderOptions& options) {
  COX_RETURN_IF_ERROR(CheckSaveable(snapshot, options));
  COX_RETURN_IF_ERROR(fs.MakeDirs(dir));
  std::vector<std::pair<std::string, std::string>> texts;
  texts.emplace_back("config.json",
                     ConfigText(snapshot.manifest.config_json, options.dtype));
  if (options.tokenizer_json) {
    texts.emplace_back("tokenizer.json", *options.tokenizer_json);
  }
  if (options.tokenizer_config_json) {
    texts.emplace_back("tokenizer_config.json", *options.tokenizer_config_json);
  }
  if (!options.eos_ids.empty() || options.pad_id) {
    texts.emplace_back("generation_config.json", GenerationConfigText(options));
  }
  const std::vector<Shard> shards = SplitIntoShards(snapshot.manifest, options);
  if (shards.size() > 1) {
    texts.emplace_back("model.safetensors.index.json",
                       IndexText(shards, options.dtype));
  }
  std::vector<SavedFile> saved;
  for (const auto& [name, text] : texts) {
    COX_ASSIGN_OR_RETURN(SavedFile file, WriteText(fs, dir, name, text));
    saved.push_back(std::move(file));
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    COX_ASSIGN_OR_RETURN(
        SavedFile file,
        WriteShard(fs, JoinPath(dir, ShardName(i, shards.size())), snapshot,
                   shards[i], options.dtype));
    saved.push_back(std::move(file));
  }
  COX_RETURN_IF_ERROR(fs.SyncDir(dir));
  return saved;
}

}  // namespace cox
