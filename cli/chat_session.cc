#include "cli/chat_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/data/stop_strings.h"

namespace cox {
namespace {

// Ids to shown text: no special tokens, nothing from a stop string on.
class ShownText {
 public:
  ShownText(std::shared_ptr<const Tokenizer> tokenizer,
            const std::vector<std::string>& stop)
      : decoder_(std::move(tokenizer)), scanner_(stop) {}
  // An id of a padded vocabulary has no text.
  std::string Push(int32_t id) {
    return scanner_.Push(decoder_.Push(id).value_or(""));
  }
  std::string Finish() {
    std::string rest = scanner_.Push(decoder_.Finish().value_or(""));
    return rest + scanner_.Finish();
  }

 private:
  StreamDecoder decoder_;
  StopScanner scanner_;
};

void AddId(std::optional<int32_t> id, std::vector<int64_t>& ids) {
  if (id.has_value() && std::ranges::find(ids, *id) == ids.end()) {
    ids.push_back(*id);
  }
}

}  // namespace

ChatSession::ChatSession(ChatModel model, ChatSettings settings)
    : model_(std::move(model)), settings_(std::move(settings)) {
  std::vector<int64_t>& ends = settings_.sampling.eos_ids;
  for (const int32_t id : model_.config.eos_ids) AddId(id, ends);
  // The end of a turn is not always the end of a text.
  if (model_.chat.has_value() && !model_.chat->eos_token.empty()) {
    AddId(model_.tokenizer->TokenToId(model_.chat->eos_token), ends);
  }
  Reset();
}

void ChatSession::Reset() {
  history_.clear();
  dropped_ = 0;
  if (!settings_.system.empty()) {
    history_.push_back({"system", settings_.system});
  }
}

absl::StatusOr<PromptIds> ChatSession::Prompt(
    const std::vector<ChatMessage>& messages) const {
  const std::optional<int32_t> start = model_.config.DecoderStart();
  Row row;
  row.prompt = messages.back().content;
  if (model_.chat.has_value()) {
    ChatTemplateOptions options = *model_.chat;
    options.add_generation_prompt = true;
    COX_ASSIGN_OR_RETURN(row.prompt, RenderChat(options, messages));
  }
  // A decoder's template has its own place for an instruction.
  if (start.has_value() || !model_.chat.has_value()) {
    row.instruction = settings_.instruction;
  }
  return EncodePrompt(row, model_.tokenizer.get(), start,
                      /*add_special_tokens=*/!model_.chat.has_value());
}

absl::StatusOr<PromptIds> ChatSession::FittingPrompt(
    std::vector<ChatMessage>* messages, int64_t* dropped) const {
  const int64_t most = model_.config.max_positions - 1;
  for (;;) {
    COX_ASSIGN_OR_RETURN(PromptIds prompt, Prompt(*messages));
    const size_t length =
        std::max(prompt.ids.size(), prompt.instruction_ids.size());
    if (!prompt.ids.empty() && static_cast<int64_t>(length) <= most) {
      return prompt;
    }
    const size_t oldest = messages->front().role == "system" ? 1 : 0;
    if (prompt.ids.empty() || messages->size() < oldest + 3) {
      return absl::InvalidArgumentError(absl::StrCat(
          "expected a prompt of 1 to ", most, " tokens, found ", length));
    }
    const auto first = messages->begin() + static_cast<int64_t>(oldest);
    messages->erase(first, first + 2);
    ++*dropped;
  }
}

GenerateRequest ChatSession::Request(const PromptIds& prompt, int64_t count) {
  GenerateRequest request;
  for (int64_t k = 0; k < count; ++k) {
    request.prompts.push_back(prompt.ids);
    if (!prompt.instruction_ids.empty()) {
      request.instructions.push_back(prompt.instruction_ids);
    }
    request.prompt_ids.push_back(turn_);
    request.sample_indices.push_back(static_cast<uint64_t>(k));
  }
  ++turn_;
  request.seed = settings_.seed;
  // The last token is never fed back, so it needs no position.
  request.max_new_tokens =
      std::min(settings_.max_new_tokens,
               model_.config.max_positions + 1 -
                   static_cast<int64_t>(request.prompts.front().size()));
  request.pad_id = model_.config.pad_id.value_or(0);
  request.sampling = settings_.sampling;
  request.sampling.min_new_tokens =
      std::min(request.sampling.min_new_tokens, request.max_new_tokens);
  request.stop_strings = settings_.stop;
  request.tokenizer = model_.tokenizer;
  return request;
}

absl::Status ChatSession::Say(std::string_view text, const Emit& emit) {
  std::vector<ChatMessage> messages =
      has_template() ? history_ : std::vector<ChatMessage>();
  messages.push_back({"user", std::string(text)});
  int64_t dropped = 0;
  COX_ASSIGN_OR_RETURN(const PromptIds prompt,
                       FittingPrompt(&messages, &dropped));
  GenerateRequest request = Request(prompt, /*count=*/1);
  ShownText shown(model_.tokenizer, settings_.stop);
  std::string answer;
  const auto show = [&](const std::string& piece) {
    answer += piece;
    if (!piece.empty()) emit(piece);
  };
  request.on_token = [&](int64_t, int32_t token) { show(shown.Push(token)); };
  COX_RETURN_IF_ERROR(model_.engine->Generate(request).status());
  show(shown.Finish());
  if (has_template()) {
    messages.push_back({"assistant", answer});
    history_ = std::move(messages);
    dropped_ += dropped;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ChatSession::Sample(
    std::string_view text, int64_t count) {
  std::vector<ChatMessage> messages =
      has_template() ? history_ : std::vector<ChatMessage>();
  messages.push_back({"user", std::string(text)});
  int64_t dropped = 0;
  COX_ASSIGN_OR_RETURN(const PromptIds prompt,
                       FittingPrompt(&messages, &dropped));
  COX_ASSIGN_OR_RETURN(const GenerateResult result,
                       model_.engine->Generate(Request(prompt, count)));
  std::vector<std::string> answers;
  for (const std::vector<int32_t>& tokens : result.tokens) {
    ShownText shown(model_.tokenizer, settings_.stop);
    std::string answer;
    for (const int32_t token : tokens) answer += shown.Push(token);
    answers.push_back(answer + shown.Finish());
  }
  return answers;
}

}  // namespace cox
