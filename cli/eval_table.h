#ifndef COX_CLI_EVAL_TABLE_H_
#define COX_CLI_EVAL_TABLE_H_

#include <string>
#include <string_view>

#include "lib/base/status.h"

namespace cox {

// The final table of a run as text, from eval.json
// (coordinator/stage_outputs.h). DATA_LOSS when the JSON is not such a file.
absl::StatusOr<std::string> FormatEvalTable(std::string_view eval_json);

}  // namespace cox

#endif  // COX_CLI_EVAL_TABLE_H_
