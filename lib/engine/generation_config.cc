#include "lib/engine/generation_config.h"

#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

// One id or a list; null, absent and negative ids mean none.
absl::StatusOr<std::vector<int32_t>> TokenIds(const Json& root,
                                              const char* key) {
  std::vector<int32_t> ids;
  const auto it = root.find(key);
  if (it == root.end() || it->is_null()) return ids;
  const Json list = it->is_array() ? *it : Json::array({*it});
  for (const Json& id : list) {
    if (!id.is_number_integer() ||
        id.get<int64_t>() > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "generation_config.json: ", key, ": expected token ids"));
    }
    if (id.get<int64_t>() >= 0) ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

absl::Status ApplyGenerationConfig(const std::optional<std::string>& json,
                                   ModelConfig* config) {
  if (!json.has_value()) return absl::OkStatus();
  const Json root = Json::parse(*json, /*cb=*/nullptr,
                                /*allow_exceptions=*/false);
  if (!root.is_object()) {
    return absl::InvalidArgumentError(
        "generation_config.json: not a JSON object");
  }
  COX_ASSIGN_OR_RETURN(const std::vector<int32_t> eos,
                       TokenIds(root, "eos_token_id"));
  COX_ASSIGN_OR_RETURN(const std::vector<int32_t> bos,
                       TokenIds(root, "bos_token_id"));
  COX_ASSIGN_OR_RETURN(const std::vector<int32_t> pad,
                       TokenIds(root, "pad_token_id"));
  if (!eos.empty()) config->eos_ids = eos;
  if (!bos.empty()) config->bos_id = bos.front();
  if (!pad.empty()) config->pad_id = pad.front();
  return config->Validate();
}

}  // namespace cox
