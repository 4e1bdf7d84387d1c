#include "lib/data/batch.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr int32_t kEnd = 0;

// One token per byte: no pair occurs twice.
const Tokenizer& Bytes() {
  static const std::shared_ptr<const Tokenizer> tokenizer = [] {
    BpeOptions options;
    options.vocab_size = 257;
    options.texts = {"x"};
    return *Tokenizer::TrainByteLevelBpe(options);
  }();
  return *tokenizer;
}

std::vector<int32_t> Ids(std::string_view text) {
  return *Bytes().Encode(text);
}

std::vector<int32_t> Concat(std::vector<int32_t> a,
                            const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Dataset MakeDataset(const std::vector<std::string>& lines) {
  Dataset dataset;
  dataset.paths = {"data.jsonl"};
  for (const std::string& line : lines) {
    absl::StatusOr<Row> row = ParseRow(line);
    COX_CHECK(row.ok());
    row->line = static_cast<int64_t>(dataset.rows.size()) + 1;
    dataset.rows.push_back(*std::move(row));
  }
  dataset.kind = dataset.rows.front().kind;
  return dataset;
}

TokenizeOptions Options(int64_t prompt, int64_t response) {
  TokenizeOptions options;
  options.max_prompt_tokens = prompt;
  options.max_response_tokens = response;
  options.end_id = kEnd;
  return options;
}

TEST(TokenizePromptsTest, NumbersPromptsByRow) {
  const Dataset dataset =
      MakeDataset({R"({"prompt": "ab"})", R"({"prompt": "c"})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<PromptExample> prompts,
                       TokenizePrompts(dataset, &Bytes(), Options(8, 8)));
  ASSERT_THAT(prompts, SizeIs(2));
  EXPECT_EQ(prompts[1].prompt_id, 1U);
  EXPECT_EQ(prompts[0].ids, Ids("ab"));
  EXPECT_EQ(prompts[0].text, "ab");
}

TEST(TokenizePromptsTest, TooLongPromptsAreErrorsWithTheirPlace) {
  const Dataset dataset =
      MakeDataset({R"({"prompt": "ab"})", R"({"prompt": "abcd"})"});
  TokenizeOptions options = Options(3, 8);
  options.truncate_responses = true;
  EXPECT_THAT(
      TokenizePrompts(dataset, &Bytes(), options),
      StatusIs(kInvalid, HasSubstr("prompt too long: 4 tokens, at most 3, at "
                                   "data.jsonl:2")));
}

TEST(TokenizePromptsTest, PromptIdsNeedNoTokenizer) {
  const Dataset dataset = MakeDataset({R"({"prompt_ids": [3, 400]})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<PromptExample> prompts,
                       TokenizePrompts(dataset, nullptr, Options(2, 1)));
  EXPECT_THAT(prompts[0].ids, ElementsAre(3, 400));
  EXPECT_THAT(TokenizePrompts(dataset, &Bytes(), Options(2, 1)),
              StatusIs(kInvalid, HasSubstr("ids below 257, found 400")));
  EXPECT_THAT(TokenizePrompts(dataset, nullptr, Options(1, 1)),
              StatusIs(kInvalid, HasSubstr("too long: 2 tokens")));
  EXPECT_THAT(TokenizePrompts(MakeDataset({R"({"prompt": "a"})"}), nullptr,
                              Options(2, 1)),
              StatusIs(kInvalid, HasSubstr("tokenizer is needed")));
}

TEST(TokenizeSftTest, JoinsPromptCompletionAndEnd) {
  const Dataset dataset =
      MakeDataset({R"({"prompt": "ab", "completion": "cd"})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<SftExample> examples,
                       TokenizeSft(dataset, Bytes(), Options(2, 3)));
  EXPECT_EQ(examples[0].ids, Concat(Ids("abcd"), {kEnd}));
  EXPECT_EQ(examples[0].prompt_length, 2);
}

TEST(TokenizeSftTest, TooLongCompletionsAreErrorsOrAreCut) {
  const Dataset dataset =
      MakeDataset({R"({"prompt": "ab", "completion": "cd"})"});
  TokenizeOptions options = Options(2, 2);
  EXPECT_THAT(TokenizeSft(dataset, Bytes(), options),
              StatusIs(kInvalid, HasSubstr("completion too long: 3 tokens")));
  options.truncate_responses = true;
  ASSERT_OK_AND_ASSIGN(const std::vector<SftExample> examples,
                       TokenizeSft(dataset, Bytes(), options));
  EXPECT_EQ(examples[0].ids, Ids("abcd"));
}

TEST(TokenizeSftTest, TextTrainsOnEverything) {
  const Dataset dataset = MakeDataset({R"({"text": "abc"})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<SftExample> examples,
                       TokenizeSft(dataset, Bytes(), Options(2, 2)));
  EXPECT_EQ(examples[0].ids, Concat(Ids("abc"), {kEnd}));
  EXPECT_EQ(examples[0].prompt_length, 0);
}

TEST(TokenizeSftTest, MessagesTrainOnTheLastAnswer) {
  const Dataset dataset =
      MakeDataset({R"({"messages": [{"role": "user", "content": "q"},)"
                   R"( {"role": "assistant", "content": "yes"}]})"});
  TokenizeOptions options = Options(64, 64);
  EXPECT_THAT(TokenizeSft(dataset, Bytes(), options),
              StatusIs(kInvalid, HasSubstr("need a chat template")));
  options.chat = ChatTemplateOptions();
  options.chat->template_text =
      "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
      "{% if add_generation_prompt %}a:{% endif %}";
  ASSERT_OK_AND_ASSIGN(const std::vector<SftExample> examples,
                       TokenizeSft(dataset, Bytes(), options));
  EXPECT_EQ(examples[0].ids, Concat(Ids("u:q;a:yes;"), {kEnd}));
  EXPECT_EQ(examples[0].prompt_length, 6);  // u:q;a:
  ASSERT_OK_AND_ASSIGN(const std::vector<PromptExample> prompts,
                       TokenizePrompts(dataset, &Bytes(), options));
  EXPECT_EQ(prompts[0].text, "u:q;a:");
}

TEST(TokenizeSftTest, MessagesEndWithTheirEndToken) {
  const Dataset dataset =
      MakeDataset({R"({"messages": [{"role": "user", "content": "q"},)"
                   R"( {"role": "assistant", "content": "yes"}]})"});
  TokenizeOptions options = Options(64, 64);
  options.chat = ChatTemplateOptions();
  options.chat->template_text =
      "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};\n{% endfor %}"
      "{% if add_generation_prompt %}a:{% endif %}";
  options.end_id = Ids(";")[0];
  ASSERT_OK_AND_ASSIGN(const std::vector<SftExample> examples,
                       TokenizeSft(dataset, Bytes(), options));
  EXPECT_EQ(examples[0].ids, Ids("u:q;\na:yes;"));
  EXPECT_EQ(examples[0].prompt_length, 7);  // u:q;\na:
}

TEST(TokenizePairsTest, TakesPairsAndRankingsOfTwo) {
  const Dataset dataset = MakeDataset(
      {R"({"prompt": "p", "chosen": "good", "rejected": "bad"})",
       R"({"prompt": "p", "responses": ["bad", "good"],"ranking": [2, 1]})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<PairExample> pairs,
                       TokenizePairs(dataset, Bytes(), Options(8, 8)));
  ASSERT_THAT(pairs, SizeIs(2));
  for (const PairExample& pair : pairs) {
    EXPECT_EQ(pair.prompt_ids, Ids("p"));
    EXPECT_EQ(pair.chosen_ids, Concat(Ids("good"), {kEnd}));
    EXPECT_EQ(pair.rejected_ids, Concat(Ids("bad"), {kEnd}));
  }
}

TEST(TokenizePairsTest, TiesAreErrors) {
  const Dataset dataset = MakeDataset(
      {R"({"prompt": "p", "responses": ["a", "b"], "ranking": [1, 1]})"});
  EXPECT_THAT(TokenizePairs(dataset, Bytes(), Options(8, 8)),
              StatusIs(kInvalid, HasSubstr("different places, at data")));
}

TEST(TokenizeRankedTest, KeepsPlaces) {
  const Dataset dataset =
      MakeDataset({R"({"prompt": "p", "responses": ["a", "b", "c"],)"
                   R"( "ranking": [2, 1, 2]})",
                   R"({"prompt": "p", "chosen": "a", "rejected": "b"})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<RankedExample> ranked,
                       TokenizeRanked(dataset, Bytes(), Options(8, 8)));
  EXPECT_THAT(ranked[0].ranks, ElementsAre(2, 1, 2));
  EXPECT_EQ(ranked[0].response_ids[2], Concat(Ids("c"), {kEnd}));
  EXPECT_THAT(ranked[1].ranks, ElementsAre(1, 2));
}

TEST(TokenizeTest, WrongKindsAreErrors) {
  const Dataset text = MakeDataset({R"({"text": "abc"})"});
  const TokenizeOptions options = Options(8, 8);
  EXPECT_THAT(TokenizePrompts(text, &Bytes(), options), StatusIs(kInvalid));
  EXPECT_THAT(TokenizePairs(text, Bytes(), options),
              StatusIs(kInvalid, HasSubstr("found text, at data.jsonl:1")));
  EXPECT_THAT(TokenizeRanked(text, Bytes(), options), StatusIs(kInvalid));
  EXPECT_THAT(
      TokenizeSft(MakeDataset({R"({"prompt": "a"})"}), Bytes(), options),
      StatusIs(kInvalid));
  EXPECT_THAT(TokenizePrompts(text, &Bytes(), Options(0, 8)),
              StatusIs(kInvalid));
}

// What an encoder-decoder gets: the instruction, and start token with context.
class EncoderDecoderRowsTest : public ::testing::Test {
 protected:
  static constexpr int32_t kStart = 255;
  static TokenizeOptions EncdecOptions(int64_t length) {
    return SftTokenizeOptions(length, kEnd, kStart);
  }
};

TEST_F(EncoderDecoderRowsTest, PromptsSplitIntoInstructionAndContext) {
  const Dataset dataset =
      MakeDataset({R"({"instruction": "do", "context": "it"})",
                   R"({"instruction": "go"})", R"({"prompt": "say"})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<PromptExample> prompts,
                       TokenizePrompts(dataset, &Bytes(), EncdecOptions(8)));
  EXPECT_EQ(prompts[0].instruction_ids, Ids("do"));
  EXPECT_EQ(prompts[0].ids, Concat({kStart}, Ids("it")));
  EXPECT_EQ(prompts[0].text, "do\nit");
  EXPECT_EQ(prompts[1].instruction_ids, Ids("go"));
  EXPECT_THAT(prompts[1].ids, ElementsAre(kStart));
  EXPECT_EQ(prompts[2].instruction_ids, Ids("say"));
  EXPECT_THAT(prompts[2].ids, ElementsAre(kStart));
  // Other models read one prompt.
  ASSERT_OK_AND_ASSIGN(const std::vector<PromptExample> plain,
                       TokenizePrompts(dataset, &Bytes(), Options(8, 8)));
  EXPECT_EQ(plain[0].ids, Ids("do\nit"));
  EXPECT_THAT(plain[0].instruction_ids, SizeIs(0));
}

TEST_F(EncoderDecoderRowsTest, OnlyTheAnswerAndItsEndAreTargets) {
  const Dataset dataset = MakeDataset(
      {R"({"instruction": "do", "context": "it", "completion": "ok"})",
       R"({"prompt": "do", "completion": "ok"})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<SftExample> rows,
                       TokenizeSft(dataset, Bytes(), EncdecOptions(6)));
  EXPECT_EQ(rows[0].instruction_ids, Ids("do"));
  EXPECT_EQ(rows[0].ids, Concat(Concat({kStart}, Ids("itok")), {kEnd}));
  EXPECT_EQ(rows[0].prompt_length, 3);
  EXPECT_EQ(rows[1].instruction_ids, Ids("do"));
  EXPECT_EQ(rows[1].ids, Concat(Concat({kStart}, Ids("ok")), {kEnd}));
  EXPECT_EQ(rows[1].prompt_length, 1);
}

TEST_F(EncoderDecoderRowsTest, TextHasTheEmptyInstruction) {
  ASSERT_OK_AND_ASSIGN(const std::vector<SftExample> rows,
                       TokenizeSft(MakeDataset({R"({"text": "ab"})"}), Bytes(),
                                   EncdecOptions(6)));
  EXPECT_THAT(rows[0].instruction_ids, ElementsAre(kStart));
  EXPECT_EQ(rows[0].ids, Concat(Concat({kStart}, Ids("ab")), {kEnd}));
  EXPECT_EQ(rows[0].prompt_length, 1);
}

TEST_F(EncoderDecoderRowsTest, WhatIsTooLongIsAnErrorWithItsPlace) {
  const auto sft = [](const std::string& row) {
    return TokenizeSft(
               MakeDataset({R"({"prompt": "a", "completion": "b"})", row}),
               Bytes(), EncdecOptions(6))
        .status();
  };
  EXPECT_THAT(sft(R"({"instruction": "abcdef", "completion": "b"})"),
              StatusIs(kInvalid, HasSubstr("instruction too long: 6 tokens, at "
                                           "most 5, at data.jsonl:2")));
  EXPECT_THAT(sft(R"({"instruction": "a", "context": "bcdef",)"
                  R"( "completion": "b"})"),
              StatusIs(kInvalid, HasSubstr("context too long: 6 tokens, at "
                                           "most 5, at data.jsonl:2")));
  // The answer is not cut.
  EXPECT_THAT(sft(R"({"instruction": "a", "context": "bc",)"
                  R"( "completion": "def"})"),
              StatusIs(kInvalid, HasSubstr("sequence too long: 7 tokens, at "
                                           "most 6, at data.jsonl:2")));
}

TEST(TokenizeTextsTest, JoinsPromptAndCompletion) {
  const Dataset dataset =
      MakeDataset({R"({"prompt": "ab", "completion": "cd"})"});
  ASSERT_OK_AND_ASSIGN(const std::vector<std::vector<int32_t>> texts,
                       TokenizeTexts(dataset, Bytes()));
  EXPECT_THAT(texts, ElementsAre(Ids("abcd")));
}

TEST(EncodePromptTest, SplitsAPromptForTheModel) {
  Row plain;
  plain.prompt = "ab";
  Row task;
  task.instruction = "i";
  task.prompt = "x";
  const auto encode = [](const Row& row, std::optional<int32_t> start,
                         const Tokenizer* tokenizer = &Bytes()) {
    return EncodePrompt(row, tokenizer, start);
  };
  ASSERT_OK_AND_ASSIGN(PromptIds ids, encode(plain, {}));
  EXPECT_EQ(ids.ids, Ids("ab"));
  EXPECT_THAT(ids.instruction_ids, ElementsAre());
  ASSERT_OK_AND_ASSIGN(ids, encode(task, {}));
  EXPECT_EQ(ids.ids, Ids("i\nx"));
  ASSERT_OK_AND_ASSIGN(ids, encode(plain, 7));
  EXPECT_EQ(ids.instruction_ids, Ids("ab"));
  EXPECT_THAT(ids.ids, ElementsAre(7));
  ASSERT_OK_AND_ASSIGN(ids, encode(task, 7));
  EXPECT_EQ(ids.instruction_ids, Ids("i"));
  EXPECT_EQ(ids.ids, Concat({7}, Ids("x")));
  // The empty instruction; no text needs no tokenizer.
  ASSERT_OK_AND_ASSIGN(ids, encode(Row(), 7, nullptr));
  EXPECT_THAT(ids.instruction_ids, ElementsAre(7));
  EXPECT_THAT(ids.ids, ElementsAre(7));
  EXPECT_THAT(encode(task, 7, nullptr),
              StatusIs(kInvalid, HasSubstr("no tokenizer")));
}

}  // namespace
}  // namespace cox
