#include "reward/table_reward.h"

#include <cmath>
#include <limits>

#include "nlohmann/json.hpp"

namespace cox {
namespace {

using nlohmann::json;

absl::Status Bad(std::string_view where, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(where), ": ", std::string(what)));
}

absl::StatusOr<std::vector<int32_t>> ParseIds(const json& value,
                                              const std::string& where) {
  if (!value.is_array()) return Bad(where, "expected a list of token ids");
  std::vector<int32_t> ids;
  for (const json& id : value) {
    if (!id.is_number_integer() || id < 0 ||
        id > std::numeric_limits<int32_t>::max()) {
      return Bad(where, absl::StrCat("expected token ids >= 0, found ",
                                     id.dump().substr(0, 40)));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

absl::StatusOr<double> ParseReward(const json& value,
                                   const std::string& where) {
  if (!value.is_number() || !std::isfinite(value.get<double>())) {
    return Bad(where, "expected a finite number");
  }
  return value.get<double>();
}

absl::Status OnlyKeys(const json& object, std::string_view where,
                      std::initializer_list<std::string_view> keys) {
  for (const auto& [key, value] : object.items()) {
    bool known = false;
    for (std::string_view name : keys) known = known || key == name;
    if (!known) return Bad(where, absl::StrCat("unknown key '", key, "'"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TableReward> TableReward::FromJson(std::string_view text) {
  const json root = json::parse(text.begin(), text.end(), /*cb=*/nullptr,
                                /*allow_exceptions=*/false);
  if (!root.is_object()) return Bad("table", "expected a JSON object");
  COX_RETURN_IF_ERROR(OnlyKeys(root, "table", {"default", "entries"}));
  TableReward table;
  if (root.contains("default") && !root["default"].is_null()) {
    COX_ASSIGN_OR_RETURN(table.default_,
                         ParseReward(root["default"], "default"));
  }
  if (!root.contains("entries")) return table;
  const json& entries = root["entries"];
  if (!entries.is_array()) return Bad("entries", "expected a list");
  for (size_t i = 0; i < entries.size(); ++i) {
    const json& entry = entries[i];
    const std::string where = absl::StrCat("entries[", i, "]");
    if (!entry.is_object()) return Bad(where, "expected an object");
    COX_RETURN_IF_ERROR(
        OnlyKeys(entry, where, {"prompt", "response", "reward"}));
    if (!entry.contains("response") || !entry.contains("reward")) {
      return Bad(where, "expected the keys 'response' and 'reward'");
    }
    COX_ASSIGN_OR_RETURN(Ids response,
                         ParseIds(entry["response"], where + ".response"));
    COX_ASSIGN_OR_RETURN(const double reward,
                         ParseReward(entry["reward"], where + ".reward"));
    bool inserted = false;
    if (entry.contains("prompt") && !entry["prompt"].is_null()) {
      COX_ASSIGN_OR_RETURN(Ids prompt,
                           ParseIds(entry["prompt"], where + ".prompt"));
      inserted = table.exact_
                     .emplace(std::pair(std::move(prompt), std::move(response)),
                              reward)
                     .second;
    } else {
      inserted = table.any_prompt_.emplace(std::move(response), reward).second;
    }
    if (!inserted) return Bad(where, "the same entry stands above");
  }
  return table;
}

absl::StatusOr<TableReward> TableReward::FromFile(Fs& fs,
                                                  const std::string& path) {
  COX_ASSIGN_OR_RETURN(const std::string text, fs.ReadAll(path));
  absl::StatusOr<TableReward> table = FromJson(text);
  if (!table.ok()) return Annotate(table.status(), path);
  return table;
}

std::optional<double> TableReward::Lookup(
    std::span<const int32_t> prompt, std::span<const int32_t> response) const {
  const Ids response_ids(response.begin(), response.end());
  const auto exact =
      exact_.find(std::pair(Ids(prompt.begin(), prompt.end()), response_ids));
  if (exact != exact_.end()) return exact->second;
  const auto any = any_prompt_.find(response_ids);
  if (any != any_prompt_.end()) return any->second;
  return default_;
}

}  // namespace cox
