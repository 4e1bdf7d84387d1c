// Checks the files of examples/data that recipes and README rely on.

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/data/batch.h"
#include "lib/data/dataset.h"
#include "lib/data/tokenizer.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

std::string DataPath(std::string_view name) {
  const char* const root = std::getenv("COX_SOURCE_DIR");
  return JoinPath(root != nullptr ? root : ".",
                  JoinPath("examples/data", name));
}

Dataset Load(std::string_view name) {
  absl::StatusOr<Dataset> dataset = LoadDataset(Fs::Real(), {DataPath(name)});
  EXPECT_OK(dataset);
  return dataset.ok() ? *std::move(dataset) : Dataset();
}

class ReviewsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    BpeOptions options;
    options.vocab_size = 2048;
    for (const Row& row : Load("reviews/pretrain.jsonl").rows) {
      options.texts.push_back(row.text);
    }
    absl::StatusOr<std::shared_ptr<const Tokenizer>> trained =
        Tokenizer::TrainByteLevelBpe(options);
    ASSERT_OK(trained);
    tokenizer_ = *trained;
  }
  static void TearDownTestSuite() { tokenizer_.reset(); }

  static TokenizeOptions Options() {
    TokenizeOptions options;
    options.max_prompt_tokens = 16;
    options.max_response_tokens = 24;
    options.end_id = *tokenizer_->TokenToId("<|endoftext|>");
    return options;
  }

  static std::shared_ptr<const Tokenizer> tokenizer_;
};

std::shared_ptr<const Tokenizer> ReviewsTest::tokenizer_;

TEST_F(ReviewsTest, TheTokenizerFillsItsVocabulary) {
  EXPECT_EQ(tokenizer_->vocab_size(), 2048);
}

TEST_F(ReviewsTest, PromptsFitSixteenTokens) {
  for (const auto& [name, least] :
       {std::pair{"reviews/prompts.jsonl", 500},
        std::pair{"reviews/comparisons_prompts.jsonl", 600},
        std::pair{"reviews/heldout_prompts.jsonl", 400}}) {
    const Dataset dataset = Load(name);
    EXPECT_OK(TokenizePrompts(dataset, tokenizer_.get(), Options())) << name;
    EXPECT_GE(dataset.size(), least) << name;
  }
}

TEST_F(ReviewsTest, CompletionsFitTwentyFourTokensWithTheEnd) {
  const Dataset dataset = Load("reviews/sft.jsonl");
  EXPECT_OK(TokenizeSft(dataset, *tokenizer_, Options()));
  EXPECT_GE(dataset.size(), 1000);
}

TEST_F(ReviewsTest, HumanPairsFitThirtyTwoTokens) {
  TokenizeOptions options = Options();
  options.max_response_tokens = 32;
  EXPECT_OK(
      TokenizePairs(Load("reviews/human_pairs.jsonl"), *tokenizer_, options));
}

std::string AllText(std::string_view name) {
  std::string all;
  for (const Row& row : Load(name).rows) {
    all += row.text + row.prompt + row.completion + "\n";
  }
  return all;
}

TEST_F(ReviewsTest, NothingHeldOutOccursInTrainingText) {
  const std::string training =
      AllText("reviews/pretrain.jsonl") + AllText("reviews/sft.jsonl");
  std::set<std::string> sentences;
  for (const Row& row : Load("reviews/pretrain.jsonl").rows) {
    sentences.insert(row.text);
  }
  std::set<std::string> held_out;
  for (const Row& row : Load("reviews/heldout_text.jsonl").rows) {
    EXPECT_FALSE(sentences.contains(row.text)) << row.text;
    held_out.insert(row.text);
  }
  for (const Row& row : Load("reviews/heldout_prompts.jsonl").rows) {
    EXPECT_EQ(training.find(row.prompt), std::string::npos) << row.prompt;
  }
  for (const Row& row : Load("reviews/human_pairs.jsonl").rows) {
    EXPECT_TRUE(held_out.contains(row.chosen)) << row.chosen;
    EXPECT_TRUE(held_out.contains(row.rejected)) << row.rejected;
  }
}

TEST_F(ReviewsTest, CollectionAndTrainingPromptsAreDisjoint) {
  std::set<std::string> prompts;
  for (const Row& row : Load("reviews/prompts.jsonl").rows) {
    prompts.insert(row.prompt);
  }
  for (const Row& row : Load("reviews/comparisons_prompts.jsonl").rows) {
    EXPECT_FALSE(prompts.contains(row.prompt)) << row.prompt;
  }
}

TEST(SotuTest, TrainingAndHeldOutParagraphsLoad) {
  const Dataset train = Load("sotu/train");
  EXPECT_EQ(train.paths.size(), 2U);
  EXPECT_GE(train.size(), 2000);
  EXPECT_GE(Load("sotu/heldout.jsonl").size(), 100);
}

}  // namespace
}  // namespace cox
