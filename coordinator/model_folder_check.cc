#include "coordinator/model_folder_check.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/weights/gguf_model.h"
#include "lib/weights/model_folder.h"
#include "lib/weights/safetensors.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

absl::Status CheckSafetensors(Fs& fs, const std::string& path) {
  COX_ASSIGN_OR_RETURN(const uint64_t size, fs.FileSize(path));
  COX_ASSIGN_OR_RETURN(const std::string first,
                       fs.ReadRange(path, 0, std::min<uint64_t>(size, 8)));
  COX_ASSIGN_OR_RETURN(const uint64_t end, SafetensorsHeaderEnd(first, size));
  COX_ASSIGN_OR_RETURN(const std::string prefix, fs.ReadRange(path, 0, end));
  return ParseSafetensorsHeader(prefix, size).status();
}

// A damaged input is the user's to mend: exit 2, not 43.
absl::Status AsInput(const absl::Status& status, const std::string& field,
                     const std::string& path) {
  if (status.ok() || absl::IsNotFound(status)) {
    return Annotate(status, field);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", path, ": ", status.message()));
}

// The tokenizer that a model brings along must be the run's own.
absl::Status CheckTokenizer(const std::string& field, const std::string& own,
                            const std::optional<std::string>& json,
                            const Tokenizer* tokenizer) {
  if (tokenizer == nullptr || !json.has_value()) {
    return absl::OkStatus();
  }
  auto theirs = Tokenizer::FromJson(*json);
  if (!theirs.ok()) {
    return AsInput(theirs.status(), field, own);
  }
  if ((*theirs)->Hash() != tokenizer->Hash()) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ": ", own, ": expected the run's tokenizer (SHA-256 ",
        tokenizer->Hash().substr(0, 12), ", ", tokenizer->vocab_size(),
        " tokens), found another (", (*theirs)->Hash().substr(0, 12), ", ",
        (*theirs)->vocab_size(),
        " tokens); set tokenizer: {kind: file, path: ", own, "}"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckModelFolder(Fs& fs, const std::string& field,
                              const std::string& dir,
                              const Tokenizer* tokenizer, int64_t vocab_size) {
  const bool gguf = IsGgufPath(dir);
  const std::string config_path = gguf ? dir : JoinPath(dir, "config.json");
  auto texts = ReadModelTexts(fs, dir);
  if (!texts.ok()) {
    return AsInput(texts.status(), field, config_path);
  }
  const auto config = nlohmann::json::parse(texts->config_json, nullptr, false);
  if (!config.is_object() || !config.contains("vocab_size") ||
      !config["vocab_size"].is_number_integer()) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ": ", config_path, ": expected an object with vocab_size"));
  }
  const auto found = config["vocab_size"].get<int64_t>();
  if (found < vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ": ", config_path, ": expected a vocabulary of at least ",
        vocab_size, " tokens (the run's tokenizer), found ", found));
  }
  if (gguf) {
    return CheckTokenizer(field, dir, texts->tokenizer_json, tokenizer);
  }
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names, fs.List(dir));
  bool weights = false;
  for (const std::string& name : names) {
    if (!name.ends_with(".safetensors")) {
      continue;
    }
    weights = true;
    const std::string path = JoinPath(dir, name);
    COX_RETURN_IF_ERROR(AsInput(CheckSafetensors(fs, path), field, path));
  }
  if (!weights) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", dir,
                     ": expected model.safetensors or shards, found none"));
  }
  return CheckTokenizer(field, JoinPath(dir, "tokenizer.json"),
                        texts->tokenizer_json, tokenizer);
}

}  // namespace cox
