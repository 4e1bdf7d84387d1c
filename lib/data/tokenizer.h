#ifndef COX_LIB_DATA_TOKENIZER_H_
#define COX_LIB_DATA_TOKENIZER_H_

// Text <-> token ids. The work is done by Hugging Face's Rust library behind
// lib/data/tokenizer_ffi.h, so any model folder's tokenizer.json loads as it
// is; a small byte-level BPE can also be trained here.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"

namespace cox {

// What to train a byte-level BPE (GPT-2's scheme) from. Every byte is in the
// alphabet, so any UTF-8 text encodes without an unknown token.
struct BpeOptions {
  int vocab_size = 2048;  // with the 256 bytes and the special tokens
  // Ids 0, 1, ... in this order; never produced by merging text.
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  int64_t min_frequency = 2;       // of a pair that may be merged
  std::vector<std::string> texts;  // each one document
  std::vector<std::string> files;  // plain text, read after `texts`

  absl::Status Validate() const;
};

// One turn of a conversation for RenderChat().
struct ChatMessage {
  std::string role;  // "system", "user", "assistant", ...
  std::string content;
};

struct ChatTemplateOptions {
  std::string template_text;  // Jinja, as in tokenizer_config.json
  std::string bos_token;
  std::string eos_token;
  bool add_generation_prompt = true;
};

// Immutable and thread-safe. Encoding costs a few microseconds per token.
class Tokenizer {
 public:
  // INVALID_ARGUMENT when the bytes are no tokenizer.json (the message says
  // where), or are larger than 256 MiB.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromJson(
      std::string_view json);
  // As FromJson, and NOT_FOUND; the message has the path.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromFile(
      const std::string& path);
  // The same options give the same bytes of tokenizer.json, whatever the
  // number of threads. INVALID_ARGUMENT: no text, or bad options. The result
  // may have fewer tokens than asked for when the text runs out of pairs.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> TrainByteLevelBpe(
      const BpeOptions& options);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // INVALID_ARGUMENT when `text` is not UTF-8. Adds no special tokens unless
  // asked to; special tokens that are written out in `text` become their ids.
  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text, bool add_special_tokens = false) const;

  // INVALID_ARGUMENT for an id outside the vocabulary. Bytes that form no
  // UTF-8 (a reply cut inside a character) come out as U+FFFD.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     bool skip_special_tokens = true) const;

  std::optional<int32_t> TokenToId(std::string_view token) const;
  std::optional<std::string> IdToToken(int32_t id) const;
  // With added tokens: one more than the largest id.
  int32_t vocab_size() const;
  const std::string& ToJson() const;
  // SHA-256 of ToJson(), 64 hexadecimal digits.
  const std::string& Hash() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns ids into text piece by piece. A piece ends only at a character
// boundary: bytes of an unfinished character wait for the next ids, so the
// pieces joined equal Decode() of all ids. Thread-compatible.
class StreamDecoder {
 public:
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer,
                         bool skip_special_tokens = true);
  // The text that became certain; often empty. Errors as Decode().
  absl::StatusOr<std::string> Push(int32_t id);
  // What still waited, with U+FFFD for unfinished bytes.
  absl::StatusOr<std::string> Finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_tokens_;
  std::vector<int32_t> window_;  // the last piece's ids, then waiting ones
  size_t boundary_ = 0;          // how many of window_ belong to that piece
  size_t certain_bytes_ = 0;     // of Decode(window_), already returned
};

// Renders a conversation with a model's Jinja chat template. A template has no
// file, network or clock access (dates are a fixed day). Bounds: 64 KiB of
// template, 1,024 messages, 16 MiB of text in, 32 MiB out; the time a template
// takes is not bounded, so take templates only from a trusted model folder.
// INVALID_ARGUMENT with the renderer's message.
absl::StatusOr<std::string> RenderChat(
    const ChatTemplateOptions& options,
    const std::vector<ChatMessage>& messages);

}  // namespace cox

#endif  // COX_LIB_DATA_TOKENIZER_H_
