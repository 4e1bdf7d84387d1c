// The encoder-decoder through all four roles: pretrain, sft, collect, rm, ppo,
// eval in real processes.

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "nlohmann/json.hpp"
#include "tests/process/run_harness.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using cox::testing::TempDir;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::vector<std::string> ArticleRun(const std::string& file,
                                    const std::string& run) {
  const std::string article =
      absl::StrCat(std::getenv("COX_SOURCE_DIR"), "/examples/data/article");
  return {
      "run",
      file,
      "run_dir=" + run,
      "model.type=instruct_encdec",
      "model.encoder_layers=1",
      "model.max_positions=96",
      absl::StrCat("sft.train=[", article, "/sft.jsonl]"),
      "sft.sequence_length=96",
      absl::StrCat("collect.prompts=[", article, "/comparisons_prompts.jsonl]"),
      absl::StrCat("ppo.prompts=[", article, "/prompts.jsonl]"),
      absl::StrCat("eval.prompts=[", article, "/heldout_prompts.jsonl]")};
}

// The reward model of the record scores its answers again; another one is
// found out.
void ExpectScoresAgain(const std::string& run, const std::string& scratch) {
  const std::vector<std::string> check = {"explain", "--check", run};
  const RunResult same = Cox(check, scratch);
  EXPECT_EQ(same.exit_code, 0) << same.output;
  EXPECT_THAT(same.output, HasSubstr("ppo: 64 answers scored again by "));
  const std::string weights =
      JoinPath(run, "checkpoints/rm/step_000003.g1/reward/model.safetensors");
  std::string bytes = Fs::Real().ReadAll(weights).value_or("");
  ASSERT_GT(bytes.size(), 4000u);
  std::fill(bytes.end() - 400, bytes.end(), '\x3f');
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), weights, bytes).ok());
  const RunResult other = Cox(check, scratch);
  EXPECT_EQ(other.exit_code, 1) << other.output;
  EXPECT_THAT(other.output, HasSubstr("DIFFERS at s"));
}

TEST(ArticleTest, TheRecipeRunsWithInstructionsAndContexts) {
  TempDir dir;
  const std::string run = JoinPath(dir.path(), "run");
  const RunResult result =
      Cox(ArticleRun(WriteMiniRecipe(dir.path()), run), dir.path());
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(CommittedSteps(run).size(), 12u + 8u + 3u + 4u);
  const std::string rows =
      Fs::Real().ReadAll(JoinPath(run, "comparisons.jsonl")).value_or("");
  const nlohmann::json row = nlohmann::json::parse(
      rows.substr(0, rows.find('\n')), nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(row.is_object()) << rows.substr(0, 200);
  EXPECT_THAT(row.value("prompt", ""), StartsWith("Continue the review.\n"));
  // The start token is the end token, 0; then the context.
  EXPECT_GT(row["instruction_ids"].size(), 3u);
  ASSERT_GT(row["prompt_ids"].size(), 1u);
  EXPECT_EQ(row["prompt_ids"][0], 0);
  // Learners see the actors' log-probs: ratios of a first minibatch are 1.
  const std::string metrics =
      Fs::Real().ReadAll(JoinPath(run, "metrics.jsonl")).value_or("");
  const std::string key = "\"policy/first_ratio_error\":";
  int steps = 0;
  for (size_t at = metrics.find(key); at != std::string::npos;
       at = metrics.find(key, at + 1)) {
    EXPECT_LT(std::strtod(metrics.c_str() + at + key.size(), nullptr), 1e-4);
    ++steps;
  }
  EXPECT_EQ(steps, 4);

  // This family trains with dropout: the same choices again, from a checkpoint
  // on and with another number of ranks.
  const RunResult shown =
      Cox({"config", "show", JoinPath(dir.path(), "run.yaml"),
           "model.type=instruct_encdec"},
          dir.path());
  EXPECT_THAT(shown.output, HasSubstr("dropout: 0.1"));
  for (const char* stage : {"sft", "rm"}) {
    const RunResult replay =
        Cox({"replay", run, "--stage", stage, "--step", "1", "--to",
             stage == std::string("sft") ? "8" : "3", "--ranks", "1"},
            dir.path());
    EXPECT_EQ(replay.exit_code, 0) << replay.output;
  }
  const RunResult resumed =
      Cox({"replay", run, "--stage", "sft", "--step", "7", "--to", "8"},
          dir.path());
  EXPECT_EQ(resumed.exit_code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr("step_000005"));
  ExpectScoresAgain(run, dir.path());
}

TEST(ArticleTest, AnInstructionThatIsTooLongIsToldWithItsLineBeforeTheRun) {
  TempDir dir;
  const std::string file = WriteMiniRecipe(dir.path());
  const std::string rows = JoinPath(dir.path(), "rows.jsonl");
  std::string words;
  for (int i = 0; i < 200; ++i) words += " word";
  ASSERT_TRUE(WriteFileDurably(
                  Fs::Real(), rows,
                  absl::StrCat("{\"instruction\":\"a\",\"completion\":\"b\"}\n",
                               "{\"instruction\":\"", words,
                               "\",\"completion\":\"b\"}\n"))
                  .ok());
  for (const char* field : {"sft.train", "ppo.prompts"}) {
    std::vector<std::string> arguments =
        ArticleRun(file, JoinPath(dir.path(), "run"));
    arguments.push_back(absl::StrCat(field, "=[", rows, "]"));
    const RunResult result = Cox(arguments, dir.path());
    EXPECT_EQ(result.exit_code, 2) << result.output;
    EXPECT_THAT(result.output, HasSubstr(absl::StrCat(field, ": ")));
    EXPECT_THAT(result.output, HasSubstr("instruction too long: "));
    EXPECT_THAT(result.output, HasSubstr("rows.jsonl:2"));
  }
}

}  // namespace
}  // namespace cox
