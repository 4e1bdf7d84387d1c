#ifndef COX_LEARNER_COMPARISONS_H_
#define COX_LEARNER_COMPARISONS_H_

// Ranked completions of a prompt: what the reward model learns from.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "learner/batching.h"
#include "lib/base/status.h"
#include "lib/data/tokenizer.h"

namespace cox {

struct Comparison {
  std::vector<Sequence> completions;  // prompt and completion each, >= 2
  std::vector<int64_t> ranks;         // 1 = best; equal = tie
};

struct ComparisonOptions {
  const Tokenizer* tokenizer = nullptr;  // null: rows must carry token ids
  int32_t end_id = -1;  // appended to completions given as text; -1 = none
  int64_t vocab_size = 0;
  // A longer completion given as text is cut; a longer sequence of given ids,
  // or a prompt that leaves no room, is an error.
  int64_t max_positions = 0;
  // Encoder-decoder models: the decoder's first token (lib/data/batch.h says
  // what such a model makes of a prompt). Completions are never cut then.
  std::optional<int32_t> start;
};

// Rows, one JSON object a line; blank lines are skipped, other keys ignored:
//   {"prompt": text, "responses": [text, ...], "ranking": [1 = best, ...],
//    "prompt_ids": [...], "response_ids": [[...], ...], "instruction_ids"}
//   {"prompt": text, "chosen": text, "rejected": text}
// "instruction" with an optional "context" may stand in place of "prompt".
// Ids are preferred where both are given: they are the very tokens sampled.
// INVALID_ARGUMENT with "<name>:<line>: ..." for anything else, and for a file
// without rows.
absl::StatusOr<std::vector<Comparison>> ParseComparisons(
    std::string_view name, std::string_view jsonl,
    const ComparisonOptions& options);

// Completions of a prompt that are good or bad, each on its own.
struct LabelledRow {
  std::vector<Sequence> completions;  // may be empty
  std::vector<uint8_t> desirable;     // per completion
};

// Rows {"prompt": text, "completion": text, "label": true or false}; prompts
// as above, "completion_ids" beside or instead of "completion". Errors as
// above. One completion each.
absl::StatusOr<std::vector<LabelledRow>> ParseLabelledRows(
    std::string_view name, std::string_view jsonl,
    const ComparisonOptions& options);

// Good: what beats more completions of its row than it loses to; bad: what
// beats fewer. The others are left out.
LabelledRow LabelsOf(const Comparison& comparison);

}  // namespace cox

#endif  // COX_LEARNER_COMPARISONS_H_
