#include "lib/data/tokenizer.h"

#include <set>
#include <utility>

#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/data/tokenizer_ffi.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

constexpr size_t kMaxJsonBytes = size_t{256} << 20;
constexpr size_t kMaxTemplateBytes = size_t{64} << 10;
constexpr size_t kMaxChatMessages = 1024;
constexpr size_t kMaxChatInputBytes = size_t{16} << 20;
constexpr size_t kMaxChatOutputBytes = size_t{32} << 20;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

CoxTokSlice SliceOf(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::vector<CoxTokSlice> SlicesOf(const std::vector<std::string>& texts) {
  std::vector<CoxTokSlice> slices;
  slices.reserve(texts.size());
  for (const std::string& text : texts) {
    slices.push_back(SliceOf(text));
  }
  return slices;
}

// Copies and frees.
std::string Take(CoxTokBytes bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  cox_tok_free_bytes(bytes);
  return text;
}

absl::Status StatusOf(CoxTokStatus status, CoxTokBytes error) {
  if (status == COX_TOK_OK) {
    return absl::OkStatus();
  }
  const std::string message = Take(error);
  if (status == COX_TOK_INVALID) {
    return absl::InvalidArgumentError(message);
  }
  return absl::InternalError(absl::StrCat("tokenizer: ", message));
}

}  // namespace

struct Tokenizer::Impl {
  CoxTokenizer* handle = nullptr;
  std::string json;
  std::string hash;
  int32_t vocab_size = 0;

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { cox_tok_free(handle); }
};

absl::Status BpeOptions::Validate() const {
  if (min_frequency < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "min_frequency: expected at least 1, found ", min_frequency));
  }
  const int64_t least = 256 + static_cast<int64_t>(special_tokens.size());
  if (vocab_size < least || vocab_size > (1 << 24)) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocab_size: expected ", least, " (256 bytes and ",
                     special_tokens.size(), " special tokens) to ", 1 << 24,
                     ", found ", vocab_size));
  }
  std::set<std::string> seen;
  for (const std::string& token : special_tokens) {
    bool printable = true;
    for (const char c : token) {
      printable = printable && c > ' ' && c < '\x7f';
    }
    // One byte is in the alphabet already, and the alphabet spells other bytes
    // with characters beyond ASCII.
    if (token.size() < 2 || token.size() > 256 || !printable) {
      return absl::InvalidArgumentError(absl::StrCat(
          "special token '", token,
          "': expected 2 to 256 printable ASCII characters without spaces"));
    }
    if (!seen.insert(token).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("special token '", token, "' is listed twice"));
    }
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromJson(
    std::string_view json) {
  if (json.size() > kMaxJsonBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json: at most ", kMaxJsonBytes,
                     " bytes are allowed, found ", json.size()));
  }
  auto impl = std::make_unique<Impl>();
  CoxTokBytes error{};
  COX_RETURN_IF_ERROR(
      StatusOf(cox_tok_load(SliceOf(json), &impl->handle, &error), error));
  impl->json = std::string(json);
  impl->hash = Sha256Hex(json);
  impl->vocab_size = cox_tok_vocab_size(impl->handle);
  // shared_ptr: read-only, and engines, samplers and servers keep it.
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromFile(
    const std::string& path) {
  COX_ASSIGN_OR_RETURN(const std::string json, Fs::Real().ReadAll(path));
  absl::StatusOr<std::shared_ptr<const Tokenizer>> loaded = FromJson(json);
  if (!loaded.ok()) {
    return Annotate(loaded.status(), path);
  }
  return loaded;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::TrainByteLevelBpe(
    const BpeOptions& options) {
  COX_RETURN_IF_ERROR(options.Validate());
  std::vector<std::string> contents;
  for (const std::string& path : options.files) {
    COX_ASSIGN_OR_RETURN(std::string content, Fs::Real().ReadAll(path));
    contents.push_back(std::move(content));
  }
  std::vector<CoxTokSlice> texts = SlicesOf(options.texts);
  for (const CoxTokSlice& slice : SlicesOf(contents)) {
    texts.push_back(slice);
  }
  const std::vector<CoxTokSlice> specials = SlicesOf(options.special_tokens);
  CoxTokBytes json{};
  CoxTokBytes error{};
  const CoxTokStatus status = cox_tok_train(
      texts.data(), texts.size(), specials.data(), specials.size(),
      static_cast<size_t>(options.vocab_size),
      static_cast<uint64_t>(options.min_frequency), &json, &error);
  COX_RETURN_IF_ERROR(StatusOf(status, error));
  return FromJson(Take(json));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(
    std::string_view text, bool add_special_tokens) const {
  CoxTokIds ids{};
  CoxTokBytes error{};
  COX_RETURN_IF_ERROR(
      StatusOf(cox_tok_encode(impl_->handle, SliceOf(text),
                              add_special_tokens ? 1 : 0, &ids, &error),
               error));
  std::vector<int32_t> result(ids.data, ids.data + ids.size);
  cox_tok_free_ids(ids);
  return result;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids,
                                              bool skip_special_tokens) const {
  CoxTokBytes text{};
  CoxTokBytes error{};
  COX_RETURN_IF_ERROR(
      StatusOf(cox_tok_decode(impl_->handle, ids.data(), ids.size(),
                              skip_special_tokens ? 1 : 0, &text, &error),
               error));
  return Take(text);
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  const int32_t id = cox_tok_token_to_id(impl_->handle, SliceOf(token));
  if (id < 0) {
    return std::nullopt;
  }
  return id;
}

std::optional<std::string> Tokenizer::IdToToken(int32_t id) const {
  CoxTokBytes token{};
  CoxTokBytes error{};
  if (cox_tok_id_to_token(impl_->handle, id, &token, &error) != COX_TOK_OK) {
    cox_tok_free_bytes(error);
    return std::nullopt;
  }
  return Take(token);
}

int32_t Tokenizer::vocab_size() const { return impl_->vocab_size; }

const std::string& Tokenizer::ToJson() const { return impl_->json; }

const std::string& Tokenizer::Hash() const { return impl_->hash; }

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer,
                             bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)),
      skip_special_tokens_(skip_special_tokens) {}

absl::StatusOr<std::string> StreamDecoder::Push(int32_t id) {
  window_.push_back(id);
  absl::StatusOr<std::string> text =
      tokenizer_->Decode(window_, skip_special_tokens_);
  if (!text.ok()) {
    window_.pop_back();
    return text.status();
  }
  if (text->size() <= certain_bytes_ || text->ends_with(kReplacement)) {
    return std::string();
  }
  std::string piece = text->substr(certain_bytes_);
  // Some decoders drop a leading space, so the next piece is decoded together
  // with this one, which is then cut off.
  window_.erase(window_.begin(),
                window_.begin() + static_cast<int64_t>(boundary_));
  COX_ASSIGN_OR_RETURN(const std::string last,
                       tokenizer_->Decode(window_, skip_special_tokens_));
  certain_bytes_ = last.size();
  boundary_ = window_.size();
  return piece;
}

absl::StatusOr<std::string> StreamDecoder::Finish() {
  COX_ASSIGN_OR_RETURN(std::string text,
                       tokenizer_->Decode(window_, skip_special_tokens_));
  std::string piece =
      text.size() > certain_bytes_ ? text.substr(certain_bytes_) : "";
  window_.clear();
  boundary_ = 0;
  certain_bytes_ = 0;
  return piece;
}

absl::StatusOr<std::string> RenderChat(
    const ChatTemplateOptions& options,
    const std::vector<ChatMessage>& messages) {
  if (options.template_text.size() > kMaxTemplateBytes ||
      messages.size() > kMaxChatMessages) {
    return absl::InvalidArgumentError(absl::StrCat(
        "chat template: at most ", kMaxTemplateBytes, " bytes and ",
        kMaxChatMessages, " messages are allowed, found ",
        options.template_text.size(), " and ", messages.size()));
  }
  size_t input_bytes = 0;
  nlohmann::json list = nlohmann::json::array();
  for (const ChatMessage& message : messages) {
    input_bytes += message.role.size() + message.content.size();
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  if (input_bytes > kMaxChatInputBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template: at most ", kMaxChatInputBytes,
                     " bytes of messages are allowed, found ", input_bytes));
  }
  const nlohmann::json request = {
      {"template", options.template_text},
      {"bos_token", options.bos_token},
      {"eos_token", options.eos_token},
      {"add_generation_prompt", options.add_generation_prompt},
      {"messages", std::move(list)}};
  // Bad UTF-8 becomes U+FFFD instead of an exception.
  const std::string encoded =
      request.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  CoxTokBytes text{};
  CoxTokBytes error{};
  COX_RETURN_IF_ERROR(
      StatusOf(cox_tok_render_chat(SliceOf(encoded), &text, &error), error));
  std::string rendered = Take(text);
  if (rendered.size() > kMaxChatOutputBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template: at most ", kMaxChatOutputBytes,
                     " bytes of output are allowed, found ", rendered.size()));
  }
  return rendered;
}

}  // namespace cox
