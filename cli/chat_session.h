#ifndef COX_CLI_CHAT_SESSION_H_
#define COX_CLI_CHAT_SESSION_H_

// A conversation with a policy: history, template, sampling, and text as it
// grows. Without LibTorch, so that a fake policy can stand in.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"
#include "lib/data/batch.h"
#include "lib/data/tokenizer.h"
#include "lib/engine/engine.h"

namespace cox {

struct ChatModel {
  std::unique_ptr<PolicyEngine> engine;  // loaded
  std::shared_ptr<const Tokenizer> tokenizer;
  // With the ids of generation_config.json.
  ModelConfig config;
  // Without one, an answer continues the text that was typed.
  std::optional<ChatTemplateOptions> chat;
};

struct ChatSettings {
  std::string system;  // first message; empty = what the template does
  // Without a template: the task, what is said is its context. Empty: an
  // encoder-decoder takes what is said as the instruction.
  std::string instruction;
  int64_t max_new_tokens = 256;
  uint64_t seed = 1;
  SamplingOptions sampling;       // eos_ids: further ones, beside the model's
  std::vector<std::string> stop;  // texts that end an answer
};

// Thread-compatible. Answers are a function of (weights, conversation, seed,
// number of answers before).
class ChatSession {
 public:
  using Emit = std::function<void(std::string_view piece)>;

  ChatSession(ChatModel model, ChatSettings settings);

  // Writes the answer to `emit` piece by piece and, with a template, keeps both
  // turns. The oldest turns are dropped, with their answers, when the
  // conversation leaves no room for an answer; dropped_turns() counts them.
  // INVALID_ARGUMENT when `text` alone is too long, or empty; the conversation
  // is then as before.
  absl::Status Say(std::string_view text, const Emit& emit);

  // `count` answers to `text`, which are not kept.
  absl::StatusOr<std::vector<std::string>> Sample(std::string_view text,
                                                  int64_t count);

  void Reset();
  bool has_template() const { return model_.chat.has_value(); }
  // An answer continues what was said.
  bool continues() const {
    return !has_template() && (!settings_.instruction.empty() ||
                               !model_.config.DecoderStart().has_value());
  }
  int64_t dropped_turns() const { return dropped_; }
  const std::vector<ChatMessage>& history() const { return history_; }

 private:
  absl::StatusOr<PromptIds> Prompt(
      const std::vector<ChatMessage>& messages) const;
  absl::StatusOr<PromptIds> FittingPrompt(std::vector<ChatMessage>* messages,
                                          int64_t* dropped) const;
  GenerateRequest Request(const PromptIds& prompt, int64_t count);

  ChatModel model_;
  ChatSettings settings_;
  std::vector<ChatMessage> history_;
  uint64_t turn_ = 0;  // keys the random numbers
  int64_t dropped_ = 0;
};

}  // namespace cox

#endif  // COX_CLI_CHAT_SESSION_H_
