#ifndef COX_LIB_DATA_DATASET_H_
#define COX_LIB_DATA_DATASET_H_

// Rows of training data as text, read from JSONL or plain text files.
// Tokenised forms: lib/data/batch.h. Order of visiting: lib/data/cursor.h.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/data/tokenizer.h"

namespace cox {

// What a row of a dataset is, by its keys.
enum class RowKind {
  kText,        // {"text": s}
  kPrompt,      // {"prompt": s}
  kPromptIds,   // {"prompt_ids": [ints]}: no tokenizer needed
  kCompletion,  // {"prompt": s, "completion": s}
  kMessages,    // {"messages": [{"role": s, "content": s}, ...]}
  kPair,        // {"prompt": s (optional), "chosen": s, "rejected": s}
  kRanking,     // {"prompt": s, "responses": [s, ...], "ranking": [ints]}
};
// Wherever a row has "prompt", {"instruction": s, "context": s (optional)} may
// stand in its place: the task, and what it is about.

std::string_view RowKindName(RowKind kind);  // "text", "pair", ...

// Only the members of its kind are set.
struct Row {
  RowKind kind = RowKind::kText;
  int32_t file = 0;  // index into Dataset::paths
  int64_t line = 0;  // from 1; in a text file the paragraph's first line
  std::string text;
  std::string instruction;  // empty: the row has "prompt"
  std::string prompt;       // beside an instruction: its context, maybe empty
  std::string completion;
  std::vector<int32_t> prompt_ids;
  std::vector<ChatMessage> messages;
  std::string chosen;
  std::string rejected;
  std::vector<std::string> responses;  // at least 2
  std::vector<int32_t> ranking;        // per response; 1 = best, ties allowed
};

// The prompt as one text: "instruction\ncontext", or the plain prompt.
std::string PromptText(const Row& row);

// Rows of one kind, in the order of the files and of their lines.
struct Dataset {
  RowKind kind = RowKind::kText;
  std::vector<std::string> paths;
  std::vector<Row> rows;
  std::string hash;  // SHA-256 over each file's length and bytes, in order

  int64_t size() const { return static_cast<int64_t>(rows.size()); }
  // "path:line" of a row, for messages.
  std::string Where(const Row& row) const;
};

inline constexpr size_t kMaxRowBytes = size_t{16} << 20;

// Parses one line. The row's file and line stay unset. Keys "id", "source" and
// "meta" are allowed and ignored. INVALID_ARGUMENT: "expected a JSON object,
// found ...", bad UTF-8, unknown or missing keys, empty text or prompt, a
// ranking without a place 1 or of another length than responses, more than
// kMaxRowBytes.
absl::StatusOr<Row> ParseRow(std::string_view line);

// Loads `paths` (*.jsonl, or *.txt with one text row per paragraph, blank
// lines between). A path that is a directory means its *.jsonl and *.txt
// files in order of name. When `expected` is set every row must be of it,
// except that kPrompt also accepts rows that merely have a prompt (completion,
// pair and ranking rows, whose other members are dropped). Otherwise all rows
// must be of the first row's kind.
//
// NOT_FOUND; INVALID_ARGUMENT as "path:line: expected ..., found ...", and
// for a dataset without rows. Reads whole files into memory.
absl::StatusOr<Dataset> LoadDataset(Fs& fs,
                                    const std::vector<std::string>& paths,
                                    std::optional<RowKind> expected = {});

}  // namespace cox

#endif  // COX_LIB_DATA_DATASET_H_
