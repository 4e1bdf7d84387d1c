#include "learner/comparisons.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
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

absl::StatusOr<Ids> Encode(const std::string& text,
                           const ComparisonOptions& options, bool completion) {
  if (options.tokenizer == nullptr) {
    return absl::InvalidArgumentError(
        "token ids are needed: the run has no tokenizer");
  }
  COX_ASSIGN_OR_RETURN(Ids ids, options.tokenizer->Encode(text));
  if (completion && options.end_id >= 0) {
    ids.push_back(options.end_id);
  }
  return ids;
}

absl::StatusOr<Sequence> Join(const Ids& prompt, const Ids& completion,
                              const ComparisonOptions& options, bool exact) {
  Sequence sequence;
  if (options.start.has_value()) {
    sequence.instruction_ids = prompt;
    sequence.ids = {*options.start};
  } else {
    sequence.ids = prompt;
  }
  sequence.first_target = std::max<int64_t>(1, sequence.length());
  sequence.ids.insert(sequence.ids.end(), completion.begin(),
                      completion.end());
  if (sequence.ids.empty()) {
    return absl::InvalidArgumentError("prompt and completion are empty");
  }
  if (!exact && sequence.first_target < options.max_positions &&
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

absl::StatusOr<Ids> ReadPrompt(const Json& row,
                               const ComparisonOptions& options) {
  if (options.start.has_value() && row.contains("instruction_ids")) {
    return ReadIds(row["instruction_ids"], "instruction_ids", options);
  }
  if (row.contains("prompt_ids") && !options.start.has_value()) {
    return ReadIds(row["prompt_ids"], "prompt_ids", options);
  }
  if (!row.contains("prompt")) {
    return Ids{};
  }
  COX_ASSIGN_OR_RETURN(const std::string text, ReadText(row, "prompt"));
  return Encode(text, options, /*completion=*/false);
}

absl::StatusOr<std::vector<Ids>> ReadCompletions(
    const Json& row, const ComparisonOptions& options) {
  std::vector<Ids> completions;
  if (row.contains("chosen")) {
    for (const char* key : {"chosen", "rejected"}) {
      COX_ASSIGN_OR_RETURN(const std::string text, ReadText(row, key));
      COX_ASSIGN_OR_RETURN(Ids ids, Encode(text, options, true));
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
        Ids ids, Encode(item.get_ref<const std::string&>(), options, true));
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
  COX_ASSIGN_OR_RETURN(const Ids prompt, ReadPrompt(row, options));
  COX_ASSIGN_OR_RETURN(const std::vector<Ids> completions,
                       ReadCompletions(row, options));
  Comparison comparison;
  COX_ASSIGN_OR_RETURN(comparison.ranks, ReadRanks(row));
  if (completions.size() < 2 ||
      comparison.ranks.size() != completions.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected at least 2 responses and a place for each, "
                     "found ",
                     completions.size(), " and ", comparison.ranks.size()));
  }
  for (const Ids& completion : completions) {
    COX_ASSIGN_OR_RETURN(
        Sequence sequence,
        Join(prompt, completion, options, row.contains("response_ids")));
    comparison.completions.push_back(std::move(sequence));
  }
  return comparison;
}

}  // namespace

absl::StatusOr<std::vector<Comparison>> ParseComparisons(
    std::string_view name, std::string_view jsonl,
    const ComparisonOptions& options) {
  std::vector<Comparison> comparisons;
  for (int64_t number = 1; !jsonl.empty(); ++number) {
    const size_t end = jsonl.find('\n');
    const std::string_view line = jsonl.substr(0, end);
    jsonl.remove_prefix(end == std::string_view::npos ? jsonl.size()
                                                      : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    absl::StatusOr<Comparison> comparison = ParseLine(line, options);
    if (!comparison.ok()) {
      return Annotate(comparison.status(),
                      absl::StrCat(std::string(name), ":", number));
    }
    comparisons.push_back(*std::move(comparison));
  }
  if (comparisons.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(name), ": no comparisons"));
  }
  return comparisons;
}

}  // namespace cox
