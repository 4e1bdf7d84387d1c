#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "cli/rehearsal_service.h"
#include "gmock/gmock.h"
#include "lib/base/fs.h"
#include "lib/config/config.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(AnswerLengthsTest, FollowsTheDemonstrationsWithinTheLimit) {
  EXPECT_THAT(AnswerLengths({3, 9, 0}, 5, 5), ElementsAre(3, 5, 1, 3, 5));
  EXPECT_THAT(AnswerLengths({}, 5, 2), ElementsAre(5, 5));
}

// A run over letters: a vocabulary of single bytes makes lengths visible.
class RehearsalTest : public ::testing::Test {
 protected:
  RehearsalTest() {
    dir_ = JoinPath(::testing::TempDir(), absl::StrCat("rehearsal-", getpid()));
    EXPECT_OK(Fs::Real().MakeDirs(dir_));
    Write("text.jsonl", R"({"text":"abcdefgh"})");
    // Prompt of 3, completion of 2 and the end token; of 1, 4 and it.
    Write("sft.jsonl",
          "{\"prompt\":\"abc\",\"completion\":\"de\"}\n"
          "{\"prompt\":\"f\",\"completion\":\"ghij\"}\n");
    Write("prompts.jsonl",
          "{\"prompt\":\"abcd\"}\n{\"prompt\":\"ef\"}\n"
          "{\"prompt\":\"ghi\"}\n{\"prompt\":\"jkl\"}\n");
  }
  ~RehearsalTest() override { static_cast<void>(Fs::Real().RemoveAll(dir_)); }

  void Write(const std::string& name, const std::string& text) {
    ASSERT_OK(WriteFileDurably(Fs::Real(), JoinPath(dir_, name), text + "\n"));
  }
  cox::v1::RunConfig Config(const std::string& sft = "sft.jsonl") {
    LoadOptions load;
    load.path = JoinPath(dir_, "run.yaml");
    load.check_files = false;
    load.yaml_text =
        "stages: [sft, collect, rm, ppo]\n"
        "model: {hidden: 8, layers: 1, heads: 2, max_positions: 32}\n"
        "tokenizer: {kind: train, vocab_size: 258, files: [text.jsonl]}\n"
        "sft: {train: [" +
        sft +
        "], steps: 5, batch: 2, "
        "sequence_length: 16}\n"
        "generation: {max_prompt_tokens: 8, max_new_tokens: 4}\n"
        "collect: {prompts: [prompts.jsonl], samples_per_prompt: 2, "
        "unit_prompts: 4, labeller: simulated, heldout_fraction: 0}\n"
        "rm: {batch: 2, epochs: 3}\n"
        "reward: {kind: rm, lexicon: l.tsv}\n"
        "ppo: {prompts: [prompts.jsonl], steps: 7, prompts_per_step: 4, "
        "unit_prompts: 2}\n";
    const auto config = LoadConfig(load);
    EXPECT_TRUE(config.ok()) << config.status();
    return config.value_or(DefaultConfig());
  }
  std::string dir_;
};

TEST_F(RehearsalTest, MeasuresWhatTheRunWillRead) {
  const auto rehearsal = Rehearsal::Prepare(Config(), {});
  ASSERT_OK(rehearsal.status());
  const RunSizes& sizes = rehearsal->sizes();
  const StageSizes& sft = sizes.stages.at("sft");
  EXPECT_EQ(sft.rows, 2);
  EXPECT_DOUBLE_EQ(sft.tokens, 6);   // 3 + 2 + 1 and 1 + 4 + 1
  EXPECT_DOUBLE_EQ(sft.targets, 4);  // 3 and 5
  EXPECT_EQ(sft.steps, 5);
  EXPECT_DOUBLE_EQ(sizes.answer_tokens, 3.5);  // 3, and 5 cut to 4
  EXPECT_DOUBLE_EQ(sizes.prompt_tokens, 3);
  // Two comparisons a step, of two answers each.
  const StageSizes& rm = sizes.stages.at("rm");
  EXPECT_EQ(rm.rows, 4);
  EXPECT_DOUBLE_EQ(rm.tokens, 3 + 3.5);
  EXPECT_EQ(rm.steps, 6);
  EXPECT_EQ(sizes.stages.at("ppo").steps, 7);
  EXPECT_EQ(sizes.stages.at("collect").prompts, 4);
  std::string sources;
  for (const LengthSource& length : sizes.lengths) {
    absl::StrAppend(&sources, length.what, ": ", length.source, "\n");
  }
  EXPECT_THAT(sources, HasSubstr("measured on 512 rows of sft.jsonl"));
  EXPECT_THAT(sources, HasSubstr("answers: estimated: as long as the answers"));
}

TEST_F(RehearsalTest, LengthsCanBeGiven) {
  const auto rehearsal =
      Rehearsal::Prepare(Config(), {.prompt_tokens = 7, .answer_tokens = 2});
  ASSERT_OK(rehearsal.status());
  EXPECT_DOUBLE_EQ(rehearsal->sizes().prompt_tokens, 7);
  EXPECT_DOUBLE_EQ(rehearsal->sizes().answer_tokens, 2);
}

TEST_F(RehearsalTest, NamesTheFileThatIsMissing) {
  EXPECT_THAT(Rehearsal::Prepare(Config("none.jsonl"), {}).status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none.jsonl")));
}

TEST_F(RehearsalTest, LeavesNothingBehind) {
  const std::string tmp = JoinPath(dir_, "tmp");
  ASSERT_OK(Fs::Real().MakeDirs(tmp));
  setenv("TMPDIR", tmp.c_str(), 1);
  EXPECT_OK(Rehearsal::Prepare(Config(), {}).status());
  EXPECT_FALSE(Rehearsal::Prepare(Config("none.jsonl"), {}).ok());
  unsetenv("TMPDIR");
  const auto left = Fs::Real().List(tmp);
  ASSERT_OK(left.status());
  EXPECT_THAT(*left, IsEmpty());
}

}  // namespace
}  // namespace cox
