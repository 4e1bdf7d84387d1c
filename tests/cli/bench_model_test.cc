// cox-bench as it is started: its lines, fields and exit codes.

#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

struct Outcome {
  int exit = -1;
  Json line;
};

class BenchModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_ = ::testing::TempDir() + "/bench-llama.json";
    std::ofstream(config_)
        << R"({"model_type":"llama","vocab_size":96,"hidden_size":32,)"
        << R"("intermediate_size":64,"num_hidden_layers":2,)"
        << R"("num_attention_heads":4,"num_key_value_heads":2,)"
        << R"("max_position_embeddings":64,"rms_norm_eps":1e-5,)"
        << R"("tie_word_embeddings":true,"eos_token_id":2,)"
        << R"("hidden_act":"silu"})";
  }

  Outcome Run(const std::string& arguments) {
    const char* bin = std::getenv("COX_BIN_DIR");
    const std::string command = absl::StrCat(
        bin == nullptr ? "." : bin, "/cox-bench ", arguments, " --config ",
        config_, " --json --threads 1 --runs 2 --warmup 1 2>&1");
    FILE* pipe = popen(command.c_str(), "r");
    std::string text;
    for (char buffer[4096]; fgets(buffer, sizeof(buffer), pipe) != nullptr;) {
      text += buffer;
    }
    Outcome outcome;
    outcome.exit = WEXITSTATUS(pclose(pipe));
    outcome.line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (outcome.line.is_discarded()) outcome.line = Json{{"text", text}};
    return outcome;
  }

  void ExpectFields(const Json& line, const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      EXPECT_TRUE(line.contains(name)) << name;
    }
  }

  std::string config_;
};

TEST_F(BenchModelTest, GenerateChecksItself) {
  const std::string dump = ::testing::TempDir() + "/bench-dump.jsonl";
  for (const char* dtype : {"fp32", "bf16"}) {
    const Outcome run =
        Run(absl::StrCat("generate --dtype ", dtype,
                         " --num-prompts 6 --batch 4 "
                         "--prompt-tokens 5 --new-tokens 7 --top-p 0.9 --dump ",
                         dump));
    ASSERT_EQ(run.exit, 0) << run.line;
    EXPECT_EQ(run.line["new_tokens"], 42);  // 6 rows of 7
    EXPECT_EQ(run.line["lengths"], "fixed");
    ExpectFields(run.line,
                 {"schema", "params", "isa", "cpu_s", "other_cores", "batch",
                  "prefill_s", "prefill_tok_s", "decode_tok_s", "new_tok_s",
                  "new_tok_per_cpu_s", "slot_occupancy", "ceiling_share"});
    EXPECT_LE(run.line["check_logprob_max_abs"],
              run.line["check_logprob_bound"]);
  }
  std::ifstream in(dump);
  int lines = 0;
  for (std::string line; std::getline(in, line); ++lines) {
    const Json row = Json::parse(line);
    EXPECT_EQ(row["response_ids"].size(), 7u);
    EXPECT_EQ(row["logprobs"].size(), 7u);
    for (const Json& id : row["response_ids"]) EXPECT_NE(id, 2);  // no EOS
  }
  EXPECT_EQ(lines, 6);
}

TEST_F(BenchModelTest, ScheduledLengthsAreKept) {
  const std::string lengths = ::testing::TempDir() + "/bench-lengths.txt";
  std::ofstream(lengths) << "3\n1\n5\n";
  const Outcome run = Run(
      absl::StrCat("generate --num-prompts 3 --batch 3 --lengths ", lengths));
  ASSERT_EQ(run.exit, 0) << run.line;
  EXPECT_EQ(run.line["new_tokens"], 9);
  EXPECT_NEAR(run.line["slot_occupancy"]["median"], 9.0 / 15, 1e-9);
}

TEST_F(BenchModelTest, TrainsEveryStage) {
  for (const char* stage : {"sft", "rm", "ppo", "grpo"}) {
    const Outcome run = Run(
        absl::StrCat("train --stage ", stage,
                     " --batch 4 --group 2 --max-len 12 "
                     "--prompt-tokens 4 --new-tokens 6 --updates 2 --epochs 2 "
                     "--minibatches 2"));
    ASSERT_EQ(run.exit, 0) << stage << " " << run.line;
    ExpectFields(run.line,
                 {"stage",         "batch",       "group",
                  "epochs",        "minibatches", "optimizer_steps_per_update",
                  "prompt_tokens", "new_tokens",  "lengths",
                  "real_tokens",   "slot_tokens", "step_s",
                  "generate_s",    "score_s",     "train_s",
                  "publish_s",     "idle_s",      "samples_s",
                  "new_tok_s",     "tok_s",       "samples_per_cpu_s",
                  "model_gflop_s", "loss_first",  "loss_last",
                  "kl_mean",       "reward_mean", "lag"});
  }
}

TEST_F(BenchModelTest, ScoresAndRefuses) {
  const Outcome run = Run("score --num 6 --batch 4 --doc-tokens 9");
  ASSERT_EQ(run.exit, 0) << run.line;
  EXPECT_EQ(run.line["num_samples"], 6);
  EXPECT_EQ(Run("score --num 0").exit, 2);
  EXPECT_EQ(Run("generate --new-tokens 4 --prompts /no/such/file").exit, 2);
  EXPECT_EQ(Run("nothing").exit, 2);
}

}  // namespace
}  // namespace cox
