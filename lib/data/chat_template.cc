#include "lib/data/chat_template.h"

#include <string>
#include <utility>

#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

absl::Status Bad(std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer_config.json: ", std::string(what)));
}

// A token is its text, or an object that holds it; null or absent is none.
absl::StatusOr<std::string> TokenText(const Json& root, const char* key) {
  const auto it = root.find(key);
  if (it == root.end() || it->is_null()) return std::string();
  const Json* text = &*it;
  if (it->is_object() && it->contains("content")) text = &(*it)["content"];
  if (!text->is_string()) {
    return Bad(absl::StrCat(key, ": expected a token's text"));
  }
  return text->get<std::string>();
}

}  // namespace

absl::StatusOr<std::optional<ChatTemplateOptions>> ReadChatTemplate(
    std::string_view tokenizer_config_json) {
  const Json root = Json::parse(tokenizer_config_json, /*cb=*/nullptr,
                                /*allow_exceptions=*/false);
  if (!root.is_object()) return Bad("not a JSON object");
  const auto it = root.find("chat_template");
  if (it == root.end() || it->is_null()) return std::nullopt;
  const Json* text = &*it;
  if (it->is_array()) {
    text = nullptr;
    for (const Json& named : *it) {
      if (named.is_object() && named.value("name", Json()) == "default" &&
          named.contains("template")) {
        text = &named["template"];
      }
    }
  }
  if (text == nullptr || !text->is_string()) {
    return Bad(
        "chat_template: expected a text, or a list with one called "
        "'default'");
  }
  ChatTemplateOptions options;
  options.template_text = text->get<std::string>();
  COX_ASSIGN_OR_RETURN(options.bos_token, TokenText(root, "bos_token"));
  COX_ASSIGN_OR_RETURN(options.eos_token, TokenText(root, "eos_token"));
  return options;
}

}  // namespace cox
