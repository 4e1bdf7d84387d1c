#ifndef COX_COORDINATOR_CHAT_SETUP_H_
#define COX_COORDINATOR_CHAT_SETUP_H_

#include <optional>
#include <string>

#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/config/config.h"
#include "lib/data/tokenizer.h"

namespace cox {

// Where tokenizer.json of kind file is read from: tokenizer.path, else
// model.init.
std::string TokenizerSource(const cox::v1::RunConfig& config);

// The run's chat template, for rows of messages: of tokenizer.chat_template,
// else of model.init; nullopt with neither. Writes tokenizer_config.json of the
// run directory, which learners fetch and put into their checkpoints; a resumed
// run reads it from there. INVALID_ARGUMENT / NOT_FOUND with the file.
absl::StatusOr<std::optional<ChatTemplateOptions>> PrepareChatTemplate(
    Fs& fs, const cox::v1::RunConfig& config, const std::string& run_dir,
    bool resumed);

}  // namespace cox

#endif  // COX_COORDINATOR_CHAT_SETUP_H_
