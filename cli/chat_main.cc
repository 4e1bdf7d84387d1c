// cox-chat: talk to a policy in a model folder. `cox chat DIR` starts it; it
// is a binary of its own because it is the only command that needs LibTorch.

#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/data/tokenizer.h"
#include "lib/engine/model_config.h"
#include "lib/model/api.h"
#include "lib/weights/model_folder.h"

namespace cox {
namespace {

struct ChatOptions {
  std::string dir;
  double temperature = 1.0;
  int64_t max_new_tokens = 64;
  int64_t samples = 1;
  uint64_t seed = 1;
};

struct Chat {
  std::unique_ptr<PolicyEngine> engine;
  std::shared_ptr<const Tokenizer> tokenizer;
  ModelConfig config;
};

// Accepts a checkpoint (its policy/ is taken) or a model folder.
std::string PolicyFolder(const std::string& dir) {
  const std::string policy = JoinPath(dir, "policy");
  return Fs::Real().Exists(policy) ? policy : dir;
}

absl::StatusOr<Chat> Open(const std::string& dir) {
  COX_ASSIGN_OR_RETURN(ModelFolder folder,
                       ReadModelFolder(Fs::Real(), PolicyFolder(dir)));
  Chat chat;
  COX_ASSIGN_OR_RETURN(chat.config, ModelConfig::FromJson(folder.config_json));
  if (chat.config.head != HeadKind::kLanguageModel) {
    return absl::InvalidArgumentError(absl::StrCat(
        dir, ": expected a policy, found a model with a scalar head"));
  }
  if (!folder.tokenizer_json.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(dir, ": tokenizer.json is missing"));
  }
  COX_ASSIGN_OR_RETURN(chat.tokenizer,
                       Tokenizer::FromJson(*folder.tokenizer_json));
  COX_ASSIGN_OR_RETURN(
      auto snapshot,
      SnapshotFromFolder(folder, ParameterLayout(chat.config, "policy")));
  EngineOptions options;
  COX_RETURN_IF_ERROR(InitTorch(options).status());
  COX_ASSIGN_OR_RETURN(chat.engine, MakePolicyEngine(options));
  COX_RETURN_IF_ERROR(chat.engine->Load(std::move(snapshot)));
  return chat;
}

absl::Status Answer(Chat& chat, const ChatOptions& options,
                    const std::string& prompt, uint64_t turn) {
  COX_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                       chat.tokenizer->Encode(prompt));
  const int64_t room =
      chat.config.max_positions - static_cast<int64_t>(ids.size());
  if (ids.empty() || room < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected a prompt of 1 to ", chat.config.max_positions - 1,
        " tokens, found ", ids.size()));
  }
  GenerateRequest request;
  for (int64_t k = 0; k < options.samples; ++k) {
    request.prompts.push_back(ids);
    request.prompt_ids.push_back(turn);
    request.sample_indices.push_back(static_cast<uint64_t>(k));
  }
  request.seed = options.seed;
  request.max_new_tokens = std::min(options.max_new_tokens, room);
  request.pad_id = chat.config.pad_id.value_or(0);
  request.sampling.temperature = options.temperature;
  for (int32_t id : chat.config.eos_ids) {
    request.sampling.eos_ids.push_back(id);
  }
  COX_ASSIGN_OR_RETURN(GenerateResult result, chat.engine->Generate(request));
  for (const std::vector<int32_t>& tokens : result.tokens) {
    COX_ASSIGN_OR_RETURN(std::string text, chat.tokenizer->Decode(tokens));
    std::printf("%s%s\n", prompt.c_str(), text.c_str());
  }
  std::fflush(stdout);
  return absl::OkStatus();
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "chat: %s\n", std::string(status.message()).c_str());
  return kExitUsage;
}

int Main(const ChatOptions& options) {
  auto chat = Open(options.dir);
  if (!chat.ok()) {
    return Fail(chat.status());
  }
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal) {
    std::printf("A continuation of what you type; an empty line ends.\n");
  }
  std::string line;
  for (uint64_t turn = 0;; ++turn) {
    if (terminal) {
      std::printf("> ");
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, line) || line.empty()) {
      return kExitDone;
    }
    if (absl::Status status = Answer(*chat, options, line, turn);
        !status.ok()) {
      if (!terminal) {
        return Fail(status);
      }
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    }
  }
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  cox::InitLog("chat");
  cox::InitProcess(/*die_with_parent=*/false);
  cox::ChatOptions options;
  CLI::App app{"Talk to a policy", "cox chat"};
  app.add_option("checkpoint", options.dir,
                 "checkpoint or Hugging Face model folder")
      ->required();
  app.add_option("--temperature", options.temperature, "0 = greedy")
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--max-new-tokens", options.max_new_tokens)
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--samples", options.samples, "answers per prompt")
      ->check(CLI::Range(1, 1024));
  app.add_option("--seed", options.seed);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? cox::kExitDone : cox::kExitUsage;
  }
  return cox::Main(options);
}
