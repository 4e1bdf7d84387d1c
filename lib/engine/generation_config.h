#ifndef COX_LIB_ENGINE_GENERATION_CONFIG_H_
#define COX_LIB_ENGINE_GENERATION_CONFIG_H_

#include <optional>
#include <string>

#include "lib/base/status.h"
#include "lib/engine/model_config.h"

namespace cox {

// Token ids of a folder's generation_config.json, where it has them, take the
// place of config.json's (docs/algorithms.md §12); its sampling settings are
// not read. Absent: nothing changes. INVALID_ARGUMENT: not a JSON object, ids
// of another kind, or an end token outside the vocabulary.
absl::Status ApplyGenerationConfig(const std::optional<std::string>& json,
                                   ModelConfig* config);

}  // namespace cox

#endif  // COX_LIB_ENGINE_GENERATION_CONFIG_H_
