#ifndef COX_LIB_DATA_BATCH_H_
#define COX_LIB_DATA_BATCH_H_

// Rows of a Dataset as token ids. Lengths are checked here: what is too long
// is an error that names the file and line, or is cut where the options say so,
// and never reaches an engine.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lib/base/status.h"
#include "lib/data/dataset.h"
#include "lib/data/tokenizer.h"

namespace cox {

// How a prompt reaches a model. Decoders: `ids` are the tokens of
// PromptText(row). Encoder-decoders (TokenizeOptions::decoder_start): the
// encoder reads `instruction_ids`, which are the row's instruction, or its
// whole prompt when it has none, or the start token alone (the empty
// instruction); the decoder reads `ids`, the start token and the context. With
// other models instruction_ids are empty.

struct PromptIds {
  std::vector<int32_t> instruction_ids;
  std::vector<int32_t> ids;
};
// Of a row's instruction and prompt, whatever their length; `decoder_start` as
// in TokenizeOptions. Special tokens are added to a decoder's text if asked
// for. INVALID_ARGUMENT: no UTF-8, or a text and no tokenizer.
absl::StatusOr<PromptIds> EncodePrompt(const Row& prompt,
                                       const Tokenizer* tokenizer,
                                       std::optional<int32_t> decoder_start,
                                       bool add_special_tokens = false);

// A prompt with its number, which keys the sampling (lib/base/rng.h).
struct PromptExample {
  uint64_t prompt_id = 0;  // row index in the dataset
  std::vector<int32_t> ids;
  std::vector<int32_t> instruction_ids;
  std::string text;  // empty for prompt_ids rows
};

// Loss on ids[prompt_length..]; prompt_length 0 trains on everything.
struct SftExample {
  std::vector<int32_t> ids;
  int64_t prompt_length = 0;
  std::vector<int32_t> instruction_ids = {};
};

struct PairExample {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> instruction_ids;
  std::vector<int32_t> chosen_ids;
  std::vector<int32_t> rejected_ids;
};

struct RankedExample {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> instruction_ids;
  std::vector<std::vector<int32_t>> response_ids;
  std::vector<int32_t> ranks;  // per response; 1 = best, ties allowed
};

struct TokenizeOptions {
  // Encoder-decoders: of the instruction, and of the start token with the
  // context.
  int64_t max_prompt_tokens = 64;
  int64_t max_response_tokens = 64;  // with the end token
  // Prompt and answer, text rows, messages; 0 means max_prompt + max_response.
  int64_t max_total_tokens = 0;
  // Appended to completions and responses, unless negative.
  int32_t end_id = -1;
  // Cut responses, completions and texts that are too long (losing the end
  // token) instead of failing. Prompts are never cut.
  bool truncate_responses = false;
  // The decoder's first token (ModelConfig::DecoderStart); set for
  // encoder-decoder models only.
  std::optional<int32_t> decoder_start;
  // For messages rows; without a template they are an error.
  std::optional<ChatTemplateOptions> chat;

  absl::Status Validate() const;
};

// Of stage sft: `sequence_length` bounds each stack. Encoder-decoders lose no
// answer token (docs/algorithms.md §13); for decoders what is too long is cut.
TokenizeOptions SftTokenizeOptions(int64_t sequence_length, int32_t end_id,
                                   std::optional<int32_t> decoder_start);

// All of these: INVALID_ARGUMENT when the row kind does not fit or a length is
// exceeded ("prompt too long: 130 tokens, at most 64, at file:line"). Ids of
// prompt_ids rows are checked against the tokenizer's vocabulary.
// `tokenizer` may be null only where every row has prompt_ids.

// Rows: prompt, prompt_ids, any kind with a prompt, and messages (a last turn
// of the assistant is dropped, then the template asks for one).
absl::StatusOr<std::vector<PromptExample>> TokenizePrompts(
    const Dataset& dataset, const Tokenizer* tokenizer,
    const TokenizeOptions& options);

// Rows: completion, messages (loss on the last one, which must be the
// assistant's; the end token is appended unless the template wrote it, and what
// the template writes after it is dropped), text (prompt_length 0).
absl::StatusOr<std::vector<SftExample>> TokenizeSft(
    const Dataset& dataset, const Tokenizer& tokenizer,
    const TokenizeOptions& options);

// Rows: pair, and ranking with exactly one strict order of two.
absl::StatusOr<std::vector<PairExample>> TokenizePairs(
    const Dataset& dataset, const Tokenizer& tokenizer,
    const TokenizeOptions& options);

// Rows: ranking, and pair as a ranking of two.
absl::StatusOr<std::vector<RankedExample>> TokenizeRanked(
    const Dataset& dataset, const Tokenizer& tokenizer,
    const TokenizeOptions& options);

// Rows: text (completion rows count as prompt + completion). No length limit,
// no end token: for PackedTokens.
absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeTexts(
    const Dataset& dataset, const Tokenizer& tokenizer);

}  // namespace cox

#endif  // COX_LIB_DATA_BATCH_H_
