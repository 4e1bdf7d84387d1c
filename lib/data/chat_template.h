#ifndef COX_LIB_DATA_CHAT_TEMPLATE_H_
#define COX_LIB_DATA_CHAT_TEMPLATE_H_

// Chat templates of model folders, for RenderChat() of lib/data/tokenizer.h.

#include <optional>
#include <string_view>

#include "lib/base/status.h"
#include "lib/data/tokenizer.h"

namespace cox {

// Template, beginning and end token from the text of a tokenizer_config.json;
// nullopt when it names no template. Of several named templates the one called
// "default". INVALID_ARGUMENT: not a JSON object, or a value of another kind.
absl::StatusOr<std::optional<ChatTemplateOptions>> ReadChatTemplate(
    std::string_view tokenizer_config_json);

}  // namespace cox

#endif  // COX_LIB_DATA_CHAT_TEMPLATE_H_
