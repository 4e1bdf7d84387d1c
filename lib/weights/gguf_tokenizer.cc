// Tokenizer half of gguf_model.h.

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/weights/gguf_model.h"
#include "lib/weights/json_text.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

// Values of tokenizer.ggml.token_type.
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
};

// How text is cut before merges apply, by the name in tokenizer.ggml.pre. The
// expressions are those of the models' published tokenizer.json.
enum class Splitter { kGpt2, kDigitsThenGpt2, kLlama3, kQwen2 };
struct PreTokenizer {
  std::string_view name;
  Splitter splitter;
};
constexpr std::array<PreTokenizer, 7> kPreTokenizers = {{
    {"gpt-2", Splitter::kGpt2},
    {"gpt2", Splitter::kGpt2},
    {"smollm", Splitter::kDigitsThenGpt2},
    {"llama-bpe", Splitter::kLlama3},
    {"llama3", Splitter::kLlama3},
    {"llama-v3", Splitter::kLlama3},
    {"qwen2", Splitter::kQwen2},
}};
constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Json ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json PreTokenizerJson(Splitter splitter) {
  if (splitter == Splitter::kGpt2) return ByteLevel(/*use_regex=*/true);
  Json parts = Json::array();
  if (splitter == Splitter::kDigitsThenGpt2) {
    parts.push_back({{"type", "Digits"}, {"individual_digits", true}});
    parts.push_back(ByteLevel(/*use_regex=*/true));
  } else {
    const char* pattern =
        splitter == Splitter::kLlama3 ? kLlama3Pattern : kQwen2Pattern;
    parts.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
    parts.push_back(ByteLevel(/*use_regex=*/false));
  }
  return {{"type", "Sequence"}, {"pretokenizers", std::move(parts)}};
}

absl::StatusOr<Splitter> SplitterOf(const GgufHeader& header) {
  COX_ASSIGN_OR_RETURN(const std::optional<std::string> found_model,
                       header.Text("tokenizer.ggml.model"));
  const std::string model = found_model.value_or("");
  if (model != "gpt2") {
    return absl::FailedPreconditionError(absl::StrCat(
        "gguf: tokenizer.ggml.model: expected gpt2 (byte-level BPE), found '",
        model, "'; use the model's Hugging Face folder"));
  }
  COX_ASSIGN_OR_RETURN(const std::optional<std::string> found_pre,
                       header.Text("tokenizer.ggml.pre"));
  const std::string pre = found_pre.value_or("");
  for (const PreTokenizer& known : kPreTokenizers) {
    if (pre == known.name) return known.splitter;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "gguf: tokenizer.ggml.pre: expected gpt-2, smollm, llama-bpe or qwen2, "
      "found '",
      pre, "'; use the model's Hugging Face folder"));
}

// JSON would replace anything else, and two tokens could become one.
bool IsUtf8(const std::string& text) {
  Json json = text;
  return json.dump(-1, ' ', false, Json::error_handler_t::ignore).size() ==
         json.dump(-1, ' ', false, Json::error_handler_t::replace).size();
}

struct Tokens {
  const std::vector<std::string>* texts;
  std::vector<int64_t> types;  // one per token
};

absl::StatusOr<Tokens> TokensOf(const GgufHeader& header) {
  Tokens tokens;
  COX_ASSIGN_OR_RETURN(tokens.texts, header.Texts("tokenizer.ggml.tokens"));
  if (tokens.texts == nullptr || tokens.texts->empty()) {
    return absl::DataLossError("gguf: tokenizer.ggml.tokens is missing");
  }
  COX_ASSIGN_OR_RETURN(const auto types,
                       header.Integers("tokenizer.ggml.token_type"));
  tokens.types = types.value_or(
      std::vector<int64_t>(tokens.texts->size(), int64_t{kNormal}));
  if (tokens.types.size() != tokens.texts->size()) {
    return absl::DataLossError(
        absl::StrCat("gguf: tokenizer.ggml.token_type: ", tokens.texts->size(),
                     " expected, found ", tokens.types.size()));
  }
  std::set<std::string_view> seen;
  for (size_t i = 0; i < tokens.texts->size(); ++i) {
    const std::string& text = (*tokens.texts)[i];
    if (!seen.insert(text).second || !IsUtf8(text)) {
      return absl::DataLossError(
          absl::StrCat("gguf: tokenizer.ggml.tokens: token ", i,
                       IsUtf8(text) ? " occurs twice" : " is not UTF-8"));
    }
  }
  return tokens;
}

// ,"merges":[["a","b"],...] in one pass over the file's "a b".
absl::Status AppendMerges(const GgufHeader& header, std::string& out) {
  COX_ASSIGN_OR_RETURN(const auto* list, header.Texts("tokenizer.ggml.merges"));
  if (list == nullptr) {
    return absl::DataLossError("gguf: tokenizer.ggml.merges is missing");
  }
  out += ",\"merges\":[";
  for (size_t i = 0; i < list->size(); ++i) {
    // The byte alphabet spells a blank as another character, so the only one
    // is the separator.
    const std::string_view pair = (*list)[i];
    const size_t space = pair.find(' ');
    if (space == std::string_view::npos || space == 0 ||
        space + 1 == pair.size() || pair.find(' ', space + 1) != pair.npos) {
      return absl::DataLossError(absl::StrCat(
          "gguf: tokenizer.ggml.merges: entry ", i, " is no pair of tokens"));
    }
    out += i == 0 ? "[" : ",[";
    AppendJsonString(pair.substr(0, space), out);
    out += ',';
    AppendJsonString(pair.substr(space + 1), out);
    out += ']';
  }
  out += ']';
  return absl::OkStatus();
}

// The token's text by a key that holds its id; nullopt when absent.
absl::StatusOr<std::optional<std::string>> NamedToken(const GgufHeader& header,
                                                      const std::string& key) {
  COX_ASSIGN_OR_RETURN(const std::optional<int64_t> id, header.Integer(key));
  if (!id.has_value()) return std::nullopt;
  COX_ASSIGN_OR_RETURN(const auto* tokens,
                       header.Texts("tokenizer.ggml.tokens"));
  if (tokens == nullptr || *id < 0 ||
      static_cast<uint64_t>(*id) >= tokens->size()) {
    return absl::DataLossError(absl::StrCat("gguf: ", key, ": id ", *id,
                                            " is outside the vocabulary"));
  }
  return (*tokens)[static_cast<size_t>(*id)];
}

// Published tokenizers of these families put one token before a text, or none.
absl::StatusOr<Json> PostProcessor(const GgufHeader& header) {
  COX_ASSIGN_OR_RETURN(const std::optional<bool> add,
                       header.Flag("tokenizer.ggml.add_bos_token"));
  COX_ASSIGN_OR_RETURN(const std::optional<std::string> bos,
                       NamedToken(header, "tokenizer.ggml.bos_token_id"));
  COX_ASSIGN_OR_RETURN(const std::optional<int64_t> id,
                       header.Integer("tokenizer.ggml.bos_token_id"));
  if (!add.value_or(false) || !bos.has_value()) {
    return Json{{"type", "ByteLevel"},
                {"add_prefix_space", true},
                {"trim_offsets", false},
                {"use_regex", true}};
  }
  const auto special = [&](int type) {
    return Json{{"SpecialToken", {{"id", *bos}, {"type_id", type}}}};
  };
  const auto text = [](const char* name, int type) {
    return Json{{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  return Json{{"type", "TemplateProcessing"},
              {"single", Json::array({special(0), text("A", 0)})},
              {"pair", Json::array({special(0), text("A", 0), special(1),
                                    text("B", 1)})},
              {"special_tokens",
               {{*bos,
                 {{"id", *bos},
                  {"ids", Json::array({*id})},
                  {"tokens", Json::array({*bos})}}}}}};
}

}  // namespace

absl::StatusOr<std::string> GgufTokenizerJson(const GgufHeader& header) {
  COX_ASSIGN_OR_RETURN(const Splitter splitter, SplitterOf(header));
  COX_ASSIGN_OR_RETURN(const Tokens tokens, TokensOf(header));
  Json added = Json::array();
  std::string vocab;
  for (size_t i = 0; i < tokens.texts->size(); ++i) {
    const std::string& text = (*tokens.texts)[i];
    const int64_t type = tokens.types[i];
    // Converters fill a padded vocabulary with names of their own.
    if (type == kUnused) continue;
    if (!vocab.empty()) vocab += ',';
    AppendJsonString(text, vocab);
    absl::StrAppend(&vocab, ":", i);
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    added.push_back({{"id", i},
                     {"content", text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type != kUserDefined}});
  }
  Json out;
  out["version"] = "1.0";
  out["truncation"] = nullptr;
  out["padding"] = nullptr;
  out["added_tokens"] = std::move(added);
  out["normalizer"] =
      splitter == Splitter::kQwen2 ? Json{{"type", "NFC"}} : Json();
  out["pre_tokenizer"] = PreTokenizerJson(splitter);
  COX_ASSIGN_OR_RETURN(out["post_processor"], PostProcessor(header));
  out["decoder"] = {{"type", "ByteLevel"},
                    {"add_prefix_space", true},
                    {"trim_offsets", true},
                    {"use_regex", true}};
  out["model"] = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", nullptr},
                  {"continuing_subword_prefix", nullptr},
                  {"end_of_word_suffix", nullptr},
                  {"fuse_unk", false},
                  {"byte_fallback", false},
                  {"ignore_merges", splitter == Splitter::kLlama3}};
  // The long lists are written as text: an ordered JSON tree looks every key up
  // by walking.
  std::string text = out.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize(text.size() - 2);  // the braces of "model" and of the whole
  absl::StrAppend(&text, ",\"vocab\":{", vocab, "}");
  COX_RETURN_IF_ERROR(AppendMerges(header, text));
  return text + "}}";
}

absl::StatusOr<std::string> GgufTokenizerConfigJson(const GgufHeader& header) {
  Json out;
  out["tokenizer_class"] = "PreTrainedTokenizerFast";
  for (const auto& [name, key] :
       {std::pair("bos_token", "tokenizer.ggml.bos_token_id"),
        std::pair("eos_token", "tokenizer.ggml.eos_token_id"),
        std::pair("pad_token", "tokenizer.ggml.padding_token_id"),
        std::pair("unk_token", "tokenizer.ggml.unknown_token_id")}) {
    COX_ASSIGN_OR_RETURN(const std::optional<std::string> token,
                         NamedToken(header, key));
    if (token.has_value()) out[name] = *token;
  }
  out["clean_up_tokenization_spaces"] = false;
  COX_ASSIGN_OR_RETURN(const std::optional<std::string> chat,
                       header.Text("tokenizer.chat_template"));
  if (chat.has_value()) out["chat_template"] = *chat;
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<std::string> GgufGenerationConfigJson(const GgufHeader& header) {
  Json out = Json::object();
  std::vector<int64_t> ends;
  // End of text, of a turn, of a message: each ends an answer.
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id"}) {
    COX_ASSIGN_OR_RETURN(const std::optional<int64_t> id, header.Integer(key));
    if (id.has_value() && std::ranges::find(ends, *id) == ends.end()) {
      ends.push_back(*id);
    }
  }
  if (ends.size() == 1) out["eos_token_id"] = ends.front();
  if (ends.size() > 1) out["eos_token_id"] = ends;
  for (const auto& [name, key] :
       {std::pair("bos_token_id", "tokenizer.ggml.bos_token_id"),
        std::pair("pad_token_id", "tokenizer.ggml.padding_token_id")}) {
    COX_ASSIGN_OR_RETURN(const std::optional<int64_t> id, header.Integer(key));
    if (id.has_value()) out[name] = *id;
  }
  return out.dump(2) + "\n";
}

}  // namespace cox
