#include "learner/comparisons.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/data/batch.h"
#include "lib/data/dataset.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

constexpr size_t kMaxCompletions = 1024;

absl::StatusOr<Ids> ReadIds(const Json& value, std::string_view key,
                            const ComparisonOptions& options) {
  if (!value.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(key), ": expected a list of token ids"));
  }
  Ids ids;
  for (const Json& item : value) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 ||
        item.get<int64_t>() >= options.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(std::string(key), ": expected ids from 0 to ",
                       options.vocab_size - 1));
    }
    ids.push_back(static_cast<int32_t>(item.get<int64_t>()));
  }
  return ids;
}

absl::StatusOr<std::string> ReadText(const Json& row, const char* key) {
  const auto it = row.find(key);
  if (it == row.end() || !it->is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", key, "': expected text"));
  }
  return it->get<std::string>();
}

absl::StatusOr<Ids> EncodeCompletion(const std::string& text,
                                     const ComparisonOptions& options) {
  if (options.tokenizer == nullptr) {
    return absl::InvalidArgumentError(
        "token ids are needed: the run has no tokenizer");
  }
  COX_ASSIGN_OR_RETURN(Ids ids, options.tokenizer->Encode(text));
  if (options.end_id >= 0) {
    ids.push_back(options.end_id);
  }
  return ids;
}

// `prompt`: a sequence without completion.
absl::StatusOr<Sequence> Join(const Sequence& prompt, const Ids& completion,
                              const ComparisonOptions& options, bool exact) {
  Sequence sequence = prompt;
  sequence.first_target = std::max<int64_t>(1, sequence.length());
  sequence.ids.insert(sequence.ids.end(), completion.begin(), completion.end());
  if (sequence.ids.empty()) {
    return absl::InvalidArgumentError("prompt and completion are empty");
  }
  if (!exact && !options.start.has_value() &&
      sequence.first_target < options.max_positions &&
      sequence.length() > options.max_positions) {
    sequence.ids.resize(static_cast<size_t>(options.max_positions));
  }
  if (sequence.length() > options.max_positions) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt and completion have ", sequence.length(),
                     " tokens, the model takes ", options.max_positions));
  }
  return sequence;
}

// The members of a row that stand for its prompt.
absl::StatusOr<Row> ReadPromptText(const Json& row) {
  Row prompt;
  if (row.contains("instruction")) {
    COX_ASSIGN_OR_RETURN(prompt.instruction, ReadText(row, "instruction"));
    if (row.contains("context")) {
      COX_ASSIGN_OR_RETURN(prompt.prompt, ReadText(row, "context"));
    }
  } else if (row.contains("prompt")) {
    COX_ASSIGN_OR_RETURN(prompt.prompt, ReadText(row, "prompt"));
  }
  return prompt;
}

// Encoder-decoders: `ids` begin with the start token.
absl::StatusOr<Sequence> ReadInstruction(const Json& row,
                                         const ComparisonOptions& options) {
  Sequence sequence;
  sequence.ids = {*options.start};
  if (row.contains("instruction_ids")) {
    COX_ASSIGN_OR_RETURN(
        sequence.instruction_ids,
        ReadIds(row["instruction_ids"], "instruction_ids", options));
    if (row.contains("prompt_ids")) {
      COX_ASSIGN_OR_RETURN(sequence.ids,
                           ReadIds(row["prompt_ids"], "prompt_ids", options));
    }
  } else {
    COX_ASSIGN_OR_RETURN(const Row prompt, ReadPromptText(row));
    COX_ASSIGN_OR_RETURN(
        PromptIds ids, EncodePrompt(prompt, options.tokenizer, options.start));
    sequence.instruction_ids = std::move(ids.instruction_ids);
    sequence.ids = std::move(ids.ids);
  }
  if (sequence.instruction_ids.empty()) {
    sequence.instruction_ids = {*options.start};
  }
  if (static_cast<int64_t>(sequence.instruction_ids.size()) >
      options.max_positions) {
    return absl::InvalidArgumentError(
        absl::StrCat("instruction has ", sequence.instruction_ids.size(),
                     " tokens, the model takes ", options.max_positions));
  }
  return sequence;
}

absl::StatusOr<Sequence> ReadPrompt(const Json& row,
                                    const ComparisonOptions& options) {
  if (options.start.has_value()) return ReadInstruction(row, options);
  if (row.contains("instruction_ids")) {
    return absl::InvalidArgumentError(
        "instruction_ids: the comparisons are an encoder-decoder's, the model "
        "is not one");
  }
  Sequence sequence;
  if (row.contains("prompt_ids")) {
    COX_ASSIGN_OR_RETURN(sequence.ids,
                         ReadIds(row["prompt_ids"], "prompt_ids", options));
    return sequence;
  }
  COX_ASSIGN_OR_RETURN(const Row prompt, ReadPromptText(row));
  COX_ASSIGN_OR_RETURN(PromptIds ids, EncodePrompt(prompt, options.tokenizer,
                                                   /*decoder_start=*/{}));
  sequence.ids = std::move(ids.ids);
  return sequence;
}

absl::StatusOr<std::vector<Ids>> ReadCompletions(
    const Json& row, const ComparisonOptions& options) {
  std::vector<Ids> completions;
  if (row.contains("chosen")) {
    for (const char* key : {"chosen", "rejected"}) {
      COX_ASSIGN_OR_RETURN(const std::string text, ReadText(row, key));
      COX_ASSIGN_OR_RETURN(Ids ids, EncodeCompletion(text, options));
      completions.push_back(std::move(ids));
    }
    return completions;
  }
  const bool exact = row.contains("response_ids");
  const char* key = exact ? "response_ids" : "responses";
  if (!row.contains(key) || !row[key].is_array() ||
      row[key].size() > kMaxCompletions) {
    return absl::InvalidArgumentError(
        "expected 'responses' (a list of texts) or 'chosen' and 'rejected'");
  }
  for (const Json& item : row[key]) {
    if (exact) {
      COX_ASSIGN_OR_RETURN(Ids ids, ReadIds(item, key, options));
      completions.push_back(std::move(ids));
      continue;
    }
    if (!item.is_string()) {
      return absl::InvalidArgumentError("responses: expected texts");
    }
    COX_ASSIGN_OR_RETURN(
        Ids ids, EncodeCompletion(item.get_ref<const std::string&>(), options));
    completions.push_back(std::move(ids));
  }
  return completions;
}

absl::StatusOr<std::vector<int64_t>> ReadRanks(const Json& row) {
  if (row.contains("chosen")) {
    return std::vector<int64_t>{1, 2};
  }
  std::vector<int64_t> ranks;
  if (row.contains("ranking") && row["ranking"].is_array()) {
    for (const Json& item : row["ranking"]) {
      if (!item.is_number_integer() || item.get<int64_t>() < 1) {
        return absl::InvalidArgumentError("ranking: expected places from 1");
      }
      ranks.push_back(item.get<int64_t>());
    }
  }
  return ranks;
}

absl::StatusOr<Comparison> ParseLine(std::string_view line,
                                     const ComparisonOptions& options) {
  const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object()) {
    return absl::InvalidArgumentError("expected a JSON object");
  }
  COX_ASSIGN_OR_RETURN(const Sequence prompt, ReadPrompt(row, options));
  COX_ASSIGN_OR_RETURN(const std::vector<Ids> completions,
                       ReadCompletions(row, options));
  Comparison comparison;
  COX_ASSIGN_OR_RETURN(comparison.ranks, ReadRanks(row));
  if (completions.size() < 2 || comparison.ranks.size() != completions.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected at least 2 responses and a place for each, "
                     "found ",
                     completions.size(), " and ", comparison.ranks.size()));
  }
  for (const Ids& completion : completions) {
    COX_ASSIGN_OR_RETURN(Sequence sequence, Join(prompt, completion, options,
                                                 row.contains("response_ids")));
    comparison.completions.push_back(std::move(sequence));
  }
  return comparison;
}

absl::StatusOr<LabelledRow> ParseLabelledLine(
    std::string_view line, const ComparisonOptions& options) {
  const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object()) {
    return absl::InvalidArgumentError("expected a JSON object");
  }
  if (!row.contains("label") || !row["label"].is_boolean()) {
    return absl::InvalidArgumentError("'label': expected true or false");
  }
  COX_ASSIGN_OR_RETURN(const Sequence prompt, ReadPrompt(row, options));
  const bool exact = row.contains("completion_ids");
  Ids completion;
  if (exact) {
    COX_ASSIGN_OR_RETURN(
        completion, ReadIds(row["completion_ids"], "completion_ids", options));
  } else {
    COX_ASSIGN_OR_RETURN(const std::string text, ReadText(row, "completion"));
    COX_ASSIGN_OR_RETURN(completion, EncodeCompletion(text, options));
  }
  LabelledRow labelled;
  COX_ASSIGN_OR_RETURN(Sequence sequence,
                       Join(prompt, completion, options, exact));
  labelled.completions.push_back(std::move(sequence));
  labelled.desirable.push_back(row["label"].get<bool>() ? 1 : 0);
  return labelled;
}

// Every line that is not blank, parsed; errors name the line.
template <typename Row>
absl::StatusOr<std::vector<Row>> ParseLines(
    std::string_view name, std::string_view what, std::string_view jsonl,
    const ComparisonOptions& options,
    absl::StatusOr<Row> (*parse)(std::string_view, const ComparisonOptions&)) {
  std::vector<Row> rows;
  for (int64_t number = 1; !jsonl.empty(); ++number) {
    const size_t end = jsonl.find('\n');
    const std::string_view line = jsonl.substr(0, end);
    jsonl.remove_prefix(end == std::string_view::npos ? jsonl.size() : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    absl::StatusOr<Row> row = parse(line, options);
    if (!row.ok()) {
      return Annotate(row.status(),
                      absl::StrCat(std::string(name), ":", number));
    }
    rows.push_back(*std::move(row));
  }
  if (rows.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(name), ": no ", std::string(what)));
  }
  return rows;
}

}  // namespace

absl::StatusOr<std::vector<Comparison>> ParseComparisons(
    std::string_view name, std::string_view jsonl,
    const ComparisonOptions& options) {
  return ParseLines<Comparison>(name, "comparisons", jsonl, options, ParseLine);
}

absl::StatusOr<std::vector<LabelledRow>> ParseLabelledRows(
    std::string_view name, std::string_view jsonl,
    const ComparisonOptions& options) {
  return ParseLines<LabelledRow>(name, "labelled rows", jsonl, options,
                                 ParseLabelledLine);
}

LabelledRow LabelsOf(const Comparison& comparison) {
  LabelledRow labelled;
  for (size_t k = 0; k < comparison.ranks.size(); ++k) {
    int64_t balance = 0;  // wins minus losses
    for (const int64_t rank : comparison.ranks) {
      balance += comparison.ranks[k] < rank ? 1 : 0;
      balance -= comparison.ranks[k] > rank ? 1 : 0;
    }
    if (balance != 0) {
      labelled.completions.push_back(comparison.completions[k]);
      labelled.desirable.push_back(balance > 0 ? 1 : 0);
    }
  }
  return labelled;
}

}  // namespace cox
