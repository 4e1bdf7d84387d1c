#ifndef COX_LIB_WEIGHTS_MODEL_FOLDER_H_
#define COX_LIB_WEIGHTS_MODEL_FOLDER_H_

// Hugging Face model folders: config.json, model.safetensors (or shards with
// model.safetensors.index.json), tokenizer.json, tokenizer_config.json (with
// chat_template.jinja), generation_config.json. A path that ends in .gguf is
// read as such a file (lib/weights/gguf_model.h) into the same form. Nothing is
// unpickled; every size is bounded before memory is taken.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/weights/safetensors.h"
#include "lib/weights/snapshot.h"

namespace cox {

// All tensors of a folder, as stored.
struct RawTensor {
  DType dtype;
  std::vector<int64_t> shape;
  std::string data;
};
struct ModelFolder {
  std::string config_json;
  std::map<std::string, RawTensor> tensors;
  std::optional<std::string> tokenizer_json;
  std::optional<std::string> tokenizer_config_json;  // has the chat template
  std::optional<std::string> generation_config_json;
};
// NOT_FOUND / DATA_LOSS / FAILED_PRECONDITION with file and tensor. Shard
// names may not leave the folder.
absl::StatusOr<ModelFolder> ReadModelFolder(Fs& fs, const std::string& dir);

// The same without tensors, whose data is not read. A folder need not have any.
absl::StatusOr<ModelFolder> ReadModelTexts(Fs& fs, const std::string& dir);

// tokenizer.json's text from such a file itself, a model folder or a GGUF file.
absl::StatusOr<std::string> ReadTokenizerJson(Fs& fs, const std::string& path);

// Fills `layout`'s tensors (float32) from a folder: converts dtypes, accepts
// names with or without the family's prefix, ignores GPT-2's mask buffers and
// a tied lm_head. FAILED_PRECONDITION names a missing tensor, or one whose
// shape differs (expected and found), or one in the folder that the layout has
// no place for.
absl::StatusOr<std::shared_ptr<const Snapshot>> SnapshotFromFolder(
    const ModelFolder& folder, const Manifest& layout);

struct SaveFolderOptions {
  DType dtype = DType::kF32;
  std::optional<uint64_t> max_shard_bytes = std::nullopt;
  std::optional<std::string> tokenizer_json = std::nullopt;
  std::optional<std::string> tokenizer_config_json = std::nullopt;
  std::vector<int32_t> eos_ids = {};  // generation_config.json
  std::optional<int32_t> pad_id = std::nullopt;
};
// Makes `dir`, writes every file with Sync and syncs the folder; the caller
// renames it into place. config.json is the manifest's text (with bf16 storage,
// its torch_dtype is set). INVALID_ARGUMENT for a dtype other than F32 and BF16
// or for a snapshot that is not float32.
// Returns (file name, size, SHA-256) of each file written.
struct SavedFile {
  std::string name;
  uint64_t bytes = 0;
  std::string sha256;
};
absl::StatusOr<std::vector<SavedFile>> SaveModelFolder(
    Fs& fs, const std::string& dir, const Snapshot& snapshot,
    const SaveFolderOptions& options);

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_MODEL_FOLDER_H_
