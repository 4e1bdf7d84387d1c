// cox-chat: talk to a policy in a model folder. `cox chat DIR` starts it; it
// is a binary of its own because it is the only command that needs LibTorch.

#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/chat_session.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/data/chat_template.h"
#include "lib/data/stop_strings.h"
#include "lib/engine/generation_config.h"
#include "lib/engine/model_config.h"
#include "lib/model/api.h"
#include "lib/weights/model_folder.h"

namespace cox {
namespace {

struct ChatOptions {
  std::string source;
  std::string prompt;  // one shot
  std::optional<double> temperature;
  std::optional<int64_t> max_new_tokens;
  ChatSettings settings;
  int64_t samples = 1;
  int threads = 1;
  bool plain = false;
};

// Accepts a checkpoint (its policy/ is taken), a model folder or a GGUF file.
std::string PolicySource(const std::string& source) {
  const std::string policy = JoinPath(source, "policy");
  return Fs::Real().Exists(policy) ? policy : source;
}

absl::StatusOr<ChatModel> Open(const ChatOptions& options) {
  COX_ASSIGN_OR_RETURN(
      ModelFolder folder,
      ReadModelFolder(Fs::Real(), PolicySource(options.source)));
  ChatModel model;
  COX_ASSIGN_OR_RETURN(model.config, ModelConfig::FromJson(folder.config_json));
  if (model.config.head != HeadKind::kLanguageModel) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.source,
                     ": expected a policy, found a model with a scalar head"));
  }
  if (!folder.tokenizer_json.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.source, ": tokenizer.json is missing"));
  }
  COX_ASSIGN_OR_RETURN(model.tokenizer,
                       Tokenizer::FromJson(*folder.tokenizer_json));
  if (folder.tokenizer_config_json.has_value() && !options.plain) {
    COX_ASSIGN_OR_RETURN(model.chat,
                         ReadChatTemplate(*folder.tokenizer_config_json));
  }
  COX_ASSIGN_OR_RETURN(
      auto snapshot,
      SnapshotFromFolder(folder, ParameterLayout(model.config, "policy")));
  folder.tensors.clear();
  COX_RETURN_IF_ERROR(
      ApplyGenerationConfig(folder.generation_config_json, &model.config));
  EngineOptions engine;
  engine.threads = options.threads;
  COX_RETURN_IF_ERROR(InitTorch(engine).status());
  COX_ASSIGN_OR_RETURN(model.engine, MakePolicyEngine(engine));
  COX_RETURN_IF_ERROR(model.engine->Load(std::move(snapshot)));
  return model;
}

void Print(std::string_view piece) {
  std::fwrite(piece.data(), 1, piece.size(), stdout);
  std::fflush(stdout);
}

// A continuation is shown behind what it continues.
absl::Status Answer(ChatSession& chat, const ChatOptions& options,
                    const std::string& prompt) {
  const std::string shown = chat.continues() ? prompt : "";
  if (options.samples > 1) {
    COX_ASSIGN_OR_RETURN(const std::vector<std::string> answers,
                         chat.Sample(prompt, options.samples));
    for (const std::string& answer : answers) Print(shown + answer + "\n");
    return absl::OkStatus();
  }
  const int64_t dropped = chat.dropped_turns();
  Print(shown);
  const absl::Status status = chat.Say(prompt, Print);
  Print("\n");
  if (chat.dropped_turns() > dropped) {
    std::fprintf(stderr,
                 "(the oldest turns were dropped: the model takes no "
                 "more)\n");
  }
  return status;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "chat: %s\n", std::string(status.message()).c_str());
  return kExitUsage;
}

int Talk(ChatSession& chat, const ChatOptions& options) {
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal) {
    std::printf("%s /reset forgets, /quit ends.\n",
                chat.has_template() ? "A conversation."
                : chat.continues()  ? "A continuation of what you type."
                                    : "Answers to the instructions you type.");
  }
  std::string line;
  for (;;) {
    if (terminal) Print("> ");
    if (!std::getline(std::cin, line) || line == "/quit") return kExitDone;
    if (line.empty()) continue;
    if (line == "/reset") {
      chat.Reset();
      continue;
    }
    const absl::Status status = Answer(chat, options, line);
    if (status.ok()) continue;
    if (!terminal) return Fail(status);
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  }
}

int Main(ChatOptions options) {
  if (absl::Status status = ValidateStopStrings(options.settings.stop);
      !status.ok()) {
    return Fail(status);
  }
  absl::StatusOr<ChatModel> model = Open(options);
  if (!model.ok()) return Fail(model.status());
  const bool chats = model->chat.has_value();
  if (chats && !options.settings.instruction.empty()) {
    return Fail(absl::InvalidArgumentError(
        "--instruction: the model has a chat template; use --system, or "
        "--plain"));
  }
  options.settings.sampling.temperature =
      options.temperature.value_or(chats ? 0.7 : 1.0);
  options.settings.max_new_tokens =
      options.max_new_tokens.value_or(chats ? 512 : 64);
  ChatSession chat(*std::move(model), options.settings);
  if (options.prompt.empty()) return Talk(chat, options);
  const absl::Status status = Answer(chat, options, options.prompt);
  return status.ok() ? kExitDone : Fail(status);
}

void AddSampling(CLI::App& app, ChatOptions& options) {
  SamplingOptions& sampling = options.settings.sampling;
  app.add_option("--temperature", options.temperature,
                 "0 = greedy; default 0.7 with a chat template, else 1")
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--top-k", sampling.top_k, "0 = all tokens")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  app.add_option("--top-p", sampling.top_p)->check(CLI::Range(1e-6, 1.0));
  app.add_option("--min-p", sampling.min_p)->check(CLI::Range(0.0, 1.0));
  app.add_option("--repetition-penalty", sampling.repetition_penalty, "1 = off")
      ->check(CLI::Range(1e-6, 1e6));
  app.add_option("--forbid-id", sampling.forbid_ids,
                 "token id that is never drawn; may be repeated");
  app.add_option("--stop", options.settings.stop,
                 "text that ends an answer; may be repeated")
      ->allow_extra_args(false);
  app.add_option("--stop-id", sampling.eos_ids,
                 "token id that ends an answer; may be repeated");
  app.add_option("--min-new-tokens", sampling.min_new_tokens)
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--max-new-tokens", options.max_new_tokens,
                 "default 512 with a chat template, else 64")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--samples", options.samples, "answers per prompt")
      ->check(CLI::Range(1, 1024));
  app.add_option("--seed", options.settings.seed);
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  cox::InitLog("chat");
  cox::InitProcess(/*die_with_parent=*/false);
  cox::ChatOptions options;
  CLI::App app{"Talk to a policy", "cox chat"};
  app.add_option("model", options.source,
                 "checkpoint, Hugging Face model folder or GGUF file")
      ->required();
  app.add_option("--prompt", options.prompt, "answer this and end");
  app.add_option("--system", options.settings.system, "first message");
  app.add_option("--instruction", options.settings.instruction,
                 "the task; what you type is then its context (models without "
                 "a chat template)");
  app.add_flag("--plain", options.plain,
               "continue the text, whatever template the model has");
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024));
  cox::AddSampling(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? cox::kExitDone : cox::kExitUsage;
  }
  return cox::Main(std::move(options));
}
