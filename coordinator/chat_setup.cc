#include "coordinator/chat_setup.h"

#include <utility>

#include "lib/data/chat_template.h"
#include "lib/weights/model_folder.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

// Empty when neither the model nor the configuration has a template.
absl::StatusOr<std::string> ConfigText(Fs& fs,
                                       const cox::v1::RunConfig& config) {
  std::string text;
  if (!config.model().init().empty()) {
    COX_ASSIGN_OR_RETURN(ModelFolder folder,
                         ReadModelTexts(fs, config.model().init()));
    text = std::move(folder.tokenizer_config_json).value_or("");
  }
  const std::string& file = config.tokenizer().chat_template();
  if (file.empty()) return text;
  COX_ASSIGN_OR_RETURN(const std::string chat, fs.ReadAll(file));
  Json json = Json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) json = Json::object();
  json["chat_template"] = chat;
  if (!json.contains("eos_token")) {
    json["eos_token"] = config.tokenizer().eos_token();
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string TokenizerSource(const cox::v1::RunConfig& config) {
  return config.tokenizer().path().empty() ? config.model().init()
                                           : config.tokenizer().path();
}

absl::StatusOr<std::optional<ChatTemplateOptions>> PrepareChatTemplate(
    Fs& fs, const cox::v1::RunConfig& config, const std::string& run_dir,
    bool resumed) {
  if (config.tokenizer().kind() == "none") return std::nullopt;
  const std::string path = JoinPath(run_dir, "tokenizer_config.json");
  std::string text;
  if (resumed) {
    if (!fs.Exists(path)) return std::nullopt;
    COX_ASSIGN_OR_RETURN(text, fs.ReadAll(path));
  } else {
    COX_ASSIGN_OR_RETURN(text, ConfigText(fs, config));
    if (text.empty()) return std::nullopt;
    COX_RETURN_IF_ERROR(WriteFileDurably(fs, path, text));
  }
  absl::StatusOr<std::optional<ChatTemplateOptions>> chat =
      ReadChatTemplate(text);
  return chat.ok() ? chat : Annotate(chat.status(), path);
}

}  // namespace cox
