#ifndef COX_TESTS_COORDINATOR_SERVICE_TESTING_H_
#define COX_TESTS_COORDINATOR_SERVICE_TESTING_H_

// A whole coordinator over loopback gRPC in a temporary run directory.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/coordinator_service.h"
#include "gtest/gtest.h"
#include "lib/config/config.h"
#include "lib/rpc/coordinator_client.h"
#include "lib/rpc/operator_client.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {

inline constexpr char kServiceYaml[] = R"yaml(
name: service-test
stages: [collect, ppo]
roles: {learners: 1}
model: {max_positions: 64}
tokenizer: {kind: train, vocab_size: 300, files: [prompts.jsonl]}
generation: {max_prompt_tokens: 24, max_new_tokens: 4}
collect:
  prompts: [prompts.jsonl]
  samples_per_prompt: 2
  unit_prompts: 2
  heldout_fraction: 0.25
reward: {kind: lexicon, lexicon: lexicon.tsv}
ppo: {prompts: [prompts.jsonl], steps: 2, prompts_per_step: 4, unit_prompts: 2,
      minibatches: 1}
)yaml";

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Write("prompts.jsonl",
          "{\"prompt\": \"the film was\"}\n{\"prompt\": \"a fine\"}\n"
          "{\"prompt\": \"the food\"}\n{\"prompt\": \"we went\"}\n"
          "{\"prompt\": \"it is a\"}\n");
    Write("lexicon.tsv", "good\t2.0\nbad\t-2.0\n");
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_OK(WriteFileDurably(Fs::Real(), dir_.Join(name), text));
  }
  std::string RunDir() const { return dir_.Join("run"); }

  absl::StatusOr<cox::v1::RunConfig> Config(
      std::vector<std::string> overrides = {}) {
    LoadOptions load;
    load.path = dir_.Join("run.yaml");
    load.yaml_text = kServiceYaml;
    load.overrides = std::move(overrides);
    return LoadConfig(load);
  }
  absl::StatusOr<std::unique_ptr<Coordinator>> TryStart(
      std::vector<std::string> overrides = {}, int port = -1) {
    COX_ASSIGN_OR_RETURN(cox::v1::RunConfig config, Config(overrides));
    COX_ASSIGN_OR_RETURN(PreparedRun run,
                         PrepareRun(Fs::Real(), config, RunDir()));
    CoordinatorOptions options;
    options.port = port;
    options.core_host.tick = absl::Milliseconds(20);
    return Coordinator::Start(Fs::Real(), std::move(run), options);
  }
  void Start(std::vector<std::string> overrides = {}) {
    auto started = TryStart(std::move(overrides));
    ASSERT_OK(started.status());
    coordinator_ = *std::move(started);
  }
  std::unique_ptr<CoordinatorClient> Client(const std::string& role) {
    CoordinatorClientOptions options;
    options.address = "file:" + JoinPath(RunDir(), "endpoints.json");
    options.role = role;
    options.name = role + "-0";
    options.own_address = "127.0.0.1:1";
    options.patience = absl::Seconds(20);
    options.max_backoff = absl::Milliseconds(50);
    return std::make_unique<CoordinatorClient>(options);
  }
  std::unique_ptr<OperatorClient> Operator() {
    OperatorClientOptions options;
    options.address = "file:" + JoinPath(RunDir(), "endpoints.json");
    return std::make_unique<OperatorClient>(options);
  }

  testing::TempDir dir_;
  std::unique_ptr<Coordinator> coordinator_;
};

}  // namespace cox

#endif  // COX_TESTS_COORDINATOR_SERVICE_TESTING_H_
