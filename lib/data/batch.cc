#include "lib/data/batch.h"

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>

namespace cox {
namespace {

// Tokenises the parts of one row; every error names the row's place.
class RowTokenizer {
 public:
  RowTokenizer(const Dataset& dataset, const Row& row,
               const Tokenizer& tokenizer, const TokenizeOptions& options)
      : dataset_(dataset),
        row_(row),
        tokenizer_(tokenizer),
        options_(options) {}

  absl::Status Error(std::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(message), ", at ", dataset_.Where(row_)));
  }

  absl::Status WrongKind(std::string_view wanted) const {
    return Error(absl::StrCat("expected a row of kind ", std::string(wanted),
                              ", found ", std::string(RowKindName(row_.kind))));
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text) const {
    absl::StatusOr<std::vector<int32_t>> ids = tokenizer_.Encode(text);
    if (!ids.ok()) {
      return Error(std::string(ids.status().message()));
    }
    return ids;
  }

  // Of a conversation without its last answer, with the start of the next.
  absl::StatusOr<std::string> ChatPrompt(
      const std::vector<ChatMessage>& messages) const {
    return Render(messages, /*add_generation_prompt=*/true);
  }

  absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages,
                                     bool add_generation_prompt) const {
    if (!options_.chat.has_value()) {
      return Error("messages need a chat template, and the model has none");
    }
    ChatTemplateOptions chat = *options_.chat;
    chat.add_generation_prompt = add_generation_prompt;
    absl::StatusOr<std::string> text = RenderChat(chat, messages);
    if (!text.ok()) {
      return Error(std::string(text.status().message()));
    }
    return text;
  }

  absl::StatusOr<PromptIds> Prompt() const { return Prompt(row_); }

  // Of the text that the row's messages make.
  absl::StatusOr<PromptIds> Prompt(std::string text) const {
    Row row;
    row.prompt = std::move(text);
    return Prompt(row);
  }

  absl::StatusOr<PromptIds> Prompt(const Row& row) const {
    absl::StatusOr<PromptIds> parts =
        EncodePrompt(row, &tokenizer_, options_.decoder_start);
    if (!parts.ok()) {
      return Error(std::string(parts.status().message()));
    }
    COX_RETURN_IF_ERROR(CheckLength("instruction",
                                    parts->instruction_ids.size(),
                                    options_.max_prompt_tokens));
    const bool encoder = options_.decoder_start.has_value();
    COX_RETURN_IF_ERROR(
        CheckLength(encoder ? "start token and context" : "prompt",
                    parts->ids.size(), options_.max_prompt_tokens));
    return parts;
  }

  absl::StatusOr<std::vector<int32_t>> Response(std::string_view name,
                                                std::string_view text) const {
    COX_ASSIGN_OR_RETURN(std::vector<int32_t> ids, Encode(text));
    AppendEnd(ids);
    if (ids.empty()) {
      return Error(absl::StrCat(std::string(name), " has no tokens"));
    }
    COX_RETURN_IF_ERROR(Limit(name, options_.max_response_tokens, ids));
    return ids;
  }

  // An example that holds the prompt only.
  absl::StatusOr<SftExample> Begin(absl::StatusOr<PromptIds> prompt) const {
    COX_RETURN_IF_ERROR(prompt.status());
    SftExample example;
    example.instruction_ids = std::move(prompt->instruction_ids);
    example.ids = std::move(prompt->ids);
    example.prompt_length = static_cast<int64_t>(example.ids.size());
    return example;
  }

  void AppendEnd(std::vector<int32_t>& ids) const {
    if (options_.end_id >= 0) {
      ids.push_back(options_.end_id);
    }
  }

  // Cuts where the options allow it.
  absl::Status Limit(std::string_view name, int64_t most,
                     std::vector<int32_t>& ids) const {
    if (options_.truncate_responses &&
        static_cast<int64_t>(ids.size()) > most) {
      ids.resize(static_cast<size_t>(most));
    }
    return CheckLength(name, ids.size(), most);
  }

  absl::Status CheckLength(std::string_view name, size_t length,
                           int64_t most) const {
    if (static_cast<int64_t>(length) > most) {
      return Error(absl::StrCat(std::string(name), " too long: ", length,
                                " tokens, at most ", most));
    }
    return absl::OkStatus();
  }

  int64_t max_total() const {
    return options_.max_total_tokens > 0
               ? options_.max_total_tokens
               : options_.max_prompt_tokens + options_.max_response_tokens;
  }

 private:
  const Dataset& dataset_;
  const Row& row_;
  const Tokenizer& tokenizer_;
  const TokenizeOptions& options_;
};

absl::StatusOr<SftExample> SftFromMessages(const RowTokenizer& part,
                                           const Row& row, int32_t end_id) {
  if (row.messages.size() < 2 || row.messages.back().role != "assistant") {
    return part.Error(
        "expected messages that end with one of role 'assistant'");
  }
  const std::vector<ChatMessage> before(row.messages.begin(),
                                        row.messages.end() - 1);
  COX_ASSIGN_OR_RETURN(const std::string prompt, part.ChatPrompt(before));
  COX_ASSIGN_OR_RETURN(
      const std::string whole,
      part.Render(row.messages, /*add_generation_prompt=*/false));
  if (!whole.starts_with(prompt)) {
    return part.Error(
        "the chat template writes a conversation that does not start with its "
        "own generation prompt");
  }
  COX_ASSIGN_OR_RETURN(SftExample example, part.Begin(part.Prompt(prompt)));
  COX_ASSIGN_OR_RETURN(
      const std::vector<int32_t> answer,
      part.Encode(std::string_view(whole).substr(prompt.size())));
  example.ids.insert(example.ids.end(), answer.begin(), answer.end());
  // Templates write a line break after the end token, which no model is to
  // write: an answer ends with its end token.
  const auto end = std::ranges::find(answer.rbegin(), answer.rend(), end_id);
  if (end == answer.rend()) {
    part.AppendEnd(example.ids);
  } else {
    example.ids.resize(example.ids.size() -
                       static_cast<size_t>(end - answer.rbegin()));
  }
  COX_RETURN_IF_ERROR(
      part.CheckLength("prompt", static_cast<size_t>(example.prompt_length),
                       part.max_total() - 1));
  COX_RETURN_IF_ERROR(
      part.Limit("conversation", part.max_total(), example.ids));
  return example;
}

absl::StatusOr<SftExample> SftFromRow(const RowTokenizer& part, const Row& row,
                                      const TokenizeOptions& options) {
  SftExample example;
  switch (row.kind) {
    case RowKind::kCompletion: {
      COX_ASSIGN_OR_RETURN(example, part.Begin(part.Prompt()));
      COX_ASSIGN_OR_RETURN(const std::vector<int32_t> rest,
                           part.Response("completion", row.completion));
      example.ids.insert(example.ids.end(), rest.begin(), rest.end());
      COX_RETURN_IF_ERROR(
          part.Limit("sequence", part.max_total(), example.ids));
      return example;
    }
    case RowKind::kMessages:
      return SftFromMessages(part, row, options.end_id);
    case RowKind::kText: {
      std::vector<int32_t> text;
      COX_ASSIGN_OR_RETURN(text, part.Encode(row.text));
      if (options.decoder_start.has_value()) {
        COX_ASSIGN_OR_RETURN(example, part.Begin(part.Prompt("")));
      }
      example.ids.insert(example.ids.end(), text.begin(), text.end());
      part.AppendEnd(example.ids);
      COX_RETURN_IF_ERROR(part.Limit("text", part.max_total(), example.ids));
      return example;
    }
    default:
      return part.WrongKind("completion, messages or text");
  }
}

absl::StatusOr<RankedExample> RankedFromRow(const RowTokenizer& part,
                                            const Row& row) {
  RankedExample example;
  std::vector<std::string> responses = row.responses;
  example.ranks = row.ranking;
  if (row.kind == RowKind::kPair) {
    responses = {row.chosen, row.rejected};
    example.ranks = {1, 2};
  } else if (row.kind != RowKind::kRanking) {
    return part.WrongKind("pair or ranking");
  }
  COX_ASSIGN_OR_RETURN(PromptIds prompt, part.Prompt());
  example.prompt_ids = std::move(prompt.ids);
  example.instruction_ids = std::move(prompt.instruction_ids);
  for (size_t i = 0; i < responses.size(); ++i) {
    COX_ASSIGN_OR_RETURN(
        std::vector<int32_t> ids,
        part.Response(absl::StrCat("response ", i + 1), responses[i]));
    example.response_ids.push_back(std::move(ids));
  }
  return example;
}

absl::StatusOr<PromptExample> PromptFromRow(const RowTokenizer& part,
                                            const Row& row) {
  PromptExample example;
  switch (row.kind) {
    case RowKind::kText:
      return part.WrongKind("prompt");
    case RowKind::kMessages: {
      std::vector<ChatMessage> messages = row.messages;
      if (messages.size() > 1 && messages.back().role == "assistant") {
        messages.pop_back();
      }
      COX_ASSIGN_OR_RETURN(example.text, part.ChatPrompt(messages));
      break;
    }
    default:
      example.text = PromptText(row);
  }
  COX_ASSIGN_OR_RETURN(PromptIds prompt, row.kind == RowKind::kMessages
                                             ? part.Prompt(example.text)
                                             : part.Prompt());
  example.ids = std::move(prompt.ids);
  example.instruction_ids = std::move(prompt.instruction_ids);
  if (example.ids.empty()) {
    return part.Error("prompt has no tokens");
  }
  return example;
}

absl::StatusOr<PromptExample> PromptFromIds(const Dataset& dataset,
                                            const Row& row,
                                            const Tokenizer* tokenizer,
                                            const TokenizeOptions& options) {
  const int64_t most = options.max_prompt_tokens;
  const std::string where = absl::StrCat(", at ", dataset.Where(row));
  if (static_cast<int64_t>(row.prompt_ids.size()) > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt too long: ", row.prompt_ids.size(),
                     " tokens, at most ", most, where));
  }
  if (tokenizer != nullptr) {
    const int32_t top = *std::ranges::max_element(row.prompt_ids);
    if (top >= tokenizer->vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat("expected ids below ",
                                                     tokenizer->vocab_size(),
                                                     ", found ", top, where));
    }
  }
  PromptExample example;
  if (options.decoder_start.has_value()) {
    example.instruction_ids = row.prompt_ids;
    example.ids = {*options.decoder_start};
  } else {
    example.ids = row.prompt_ids;
  }
  return example;
}

}  // namespace

absl::StatusOr<PromptIds> EncodePrompt(const Row& prompt,
                                       const Tokenizer* tokenizer,
                                       std::optional<int32_t> decoder_start,
                                       bool add_special_tokens) {
  const auto encode =
      [&](std::string_view text) -> absl::StatusOr<std::vector<int32_t>> {
    const bool special = add_special_tokens && !decoder_start.has_value();
    if (text.empty() && !special) return std::vector<int32_t>();
    if (tokenizer == nullptr) {
      return absl::InvalidArgumentError(
          "token ids are needed: the run has no tokenizer");
    }
    return tokenizer->Encode(text, special);
  };
  PromptIds ids;
  if (!decoder_start.has_value()) {
    COX_ASSIGN_OR_RETURN(ids.ids, encode(PromptText(prompt)));
    return ids;
  }
  const bool plain = prompt.instruction.empty();
  COX_ASSIGN_OR_RETURN(ids.instruction_ids,
                       encode(plain ? prompt.prompt : prompt.instruction));
  if (ids.instruction_ids.empty()) ids.instruction_ids = {*decoder_start};
  if (!plain) {
    COX_ASSIGN_OR_RETURN(ids.ids, encode(prompt.prompt));
  }
  ids.ids.insert(ids.ids.begin(), *decoder_start);
  return ids;
}

absl::Status TokenizeOptions::Validate() const {
  if (max_prompt_tokens < 1 || max_response_tokens < 1 ||
      max_total_tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected max_prompt_tokens and max_response_tokens of at least 1 and "
        "max_total_tokens of at least 0, found ",
        max_prompt_tokens, ", ", max_response_tokens, " and ",
        max_total_tokens));
  }
  return absl::OkStatus();
}

TokenizeOptions SftTokenizeOptions(int64_t sequence_length, int32_t end_id,
                                   std::optional<int32_t> decoder_start) {
  TokenizeOptions options;
  options.max_prompt_tokens = sequence_length - 1;
  options.max_response_tokens = sequence_length;
  options.max_total_tokens = sequence_length;
  options.end_id = end_id;
  options.truncate_responses = !decoder_start.has_value();
  options.decoder_start = decoder_start;
  return options;
}

absl::StatusOr<std::vector<PromptExample>> TokenizePrompts(
    const Dataset& dataset, const Tokenizer* tokenizer,
    const TokenizeOptions& options) {
  COX_RETURN_IF_ERROR(options.Validate());
  std::vector<PromptExample> examples;
  for (const Row& row : dataset.rows) {
    absl::StatusOr<PromptExample> example;
    if (row.kind == RowKind::kPromptIds) {
      example = PromptFromIds(dataset, row, tokenizer, options);
    } else if (tokenizer == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("a tokenizer is needed for a prompt as text, at ",
                       dataset.Where(row)));
    } else {
      example =
          PromptFromRow(RowTokenizer(dataset, row, *tokenizer, options), row);
    }
    COX_RETURN_IF_ERROR(example.status());
    example->prompt_id = examples.size();
    examples.push_back(*std::move(example));
  }
  return examples;
}

absl::StatusOr<std::vector<SftExample>> TokenizeSft(
    const Dataset& dataset, const Tokenizer& tokenizer,
    const TokenizeOptions& options) {
  COX_RETURN_IF_ERROR(options.Validate());
  std::vector<SftExample> examples;
  for (const Row& row : dataset.rows) {
    const RowTokenizer part(dataset, row, tokenizer, options);
    COX_ASSIGN_OR_RETURN(SftExample example, SftFromRow(part, row, options));
    examples.push_back(std::move(example));
  }
  return examples;
}

absl::StatusOr<std::vector<PairExample>> TokenizePairs(
    const Dataset& dataset, const Tokenizer& tokenizer,
    const TokenizeOptions& options) {
  COX_RETURN_IF_ERROR(options.Validate());
  std::vector<PairExample> examples;
  for (const Row& row : dataset.rows) {
    const RowTokenizer part(dataset, row, tokenizer, options);
    COX_ASSIGN_OR_RETURN(RankedExample ranked, RankedFromRow(part, row));
    if (ranked.ranks.size() != 2 || ranked.ranks[0] == ranked.ranks[1]) {
      return part.Error("expected two responses with different places");
    }
    const size_t best = ranked.ranks[0] < ranked.ranks[1] ? 0 : 1;
    examples.push_back({std::move(ranked.prompt_ids),
                        std::move(ranked.instruction_ids),
                        std::move(ranked.response_ids[best]),
                        std::move(ranked.response_ids[1 - best])});
  }
  return examples;
}

absl::StatusOr<std::vector<RankedExample>> TokenizeRanked(
    const Dataset& dataset, const Tokenizer& tokenizer,
    const TokenizeOptions& options) {
  COX_RETURN_IF_ERROR(options.Validate());
  std::vector<RankedExample> examples;
  for (const Row& row : dataset.rows) {
    const RowTokenizer part(dataset, row, tokenizer, options);
    COX_ASSIGN_OR_RETURN(RankedExample example, RankedFromRow(part, row));
    examples.push_back(std::move(example));
  }
  return examples;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeTexts(
    const Dataset& dataset, const Tokenizer& tokenizer) {
  const TokenizeOptions options;
  std::vector<std::vector<int32_t>> documents;
  for (const Row& row : dataset.rows) {
    const RowTokenizer part(dataset, row, tokenizer, options);
    if (row.kind != RowKind::kText && row.kind != RowKind::kCompletion) {
      return part.WrongKind("text or completion");
    }
    const std::string text = row.text + PromptText(row) + row.completion;
    COX_ASSIGN_OR_RETURN(std::vector<int32_t> ids, part.Encode(text));
    documents.push_back(std::move(ids));
  }
  return documents;
}

}  // namespace cox
