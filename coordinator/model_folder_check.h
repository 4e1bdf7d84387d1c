#ifndef COX_COORDINATOR_MODEL_FOLDER_CHECK_H_
#define COX_COORDINATOR_MODEL_FOLDER_CHECK_H_

#include <string>

#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/data/tokenizer.h"

namespace cox {

// Whether a run can start from a model folder, before any process loads it:
// config.json is there; every safetensors file is as long as its header says;
// the vocabulary covers the tokenizer's; a tokenizer.json in the folder is the
// run's own (models that share a run share one tokenizer, docs/algorithms.md
// §14). Reads headers only. INVALID_ARGUMENT with `field`, file, expected and
// found; NOT_FOUND.
absl::Status CheckModelFolder(Fs& fs, const std::string& field,
                              const std::string& dir,
                              const Tokenizer* tokenizer, int64_t vocab_size);

}  // namespace cox

#endif  // COX_COORDINATOR_MODEL_FOLDER_CHECK_H_
