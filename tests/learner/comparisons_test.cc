#include "learner/comparisons.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StatusIsWith;

ComparisonOptions Options() {
  ComparisonOptions options;
  options.vocab_size = 10;
  options.max_positions = 6;
  return options;
}

TEST(ComparisonsTest, PrefersTheTokensThatWereSampled) {
  ASSERT_OK_AND_ASSIGN(
      const auto rows,
      ParseComparisons("c.jsonl",
                       R"({"prompt":"x","prompt_ids":[1,2],)"
                       R"("responses":["a","b"],"response_ids":[[3,9],[4]],)"
                       R"("ranking":[2,1],"scores":[0.1,0.2]})"
                       "\n\n",
                       Options()));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_THAT(rows[0].completions[0].ids, ElementsAre(1, 2, 3, 9));
  EXPECT_THAT(rows[0].completions[1].ids, ElementsAre(1, 2, 4));
  EXPECT_EQ(rows[0].completions[0].first_target, 2);
  EXPECT_THAT(rows[0].ranks, ElementsAre(2, 1));
}

TEST(ComparisonsTest, ReadsLabelledRows) {
  const std::string good =
      R"({"prompt_ids":[1,2],"completion_ids":[3,9],"label":true})"
      "\n"
      R"({"prompt_ids":[1],"completion_ids":[4],"label":false})";
  ASSERT_OK_AND_ASSIGN(const auto rows,
                       ParseLabelledRows("k.jsonl", good, Options()));
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_THAT(rows[0].completions[0].ids, ElementsAre(1, 2, 3, 9));
  EXPECT_EQ(rows[0].completions[0].first_target, 2);
  EXPECT_THAT(rows[0].desirable, ElementsAre(1));
  EXPECT_THAT(rows[1].desirable, ElementsAre(0));
  const auto error = [](const char* row, const char* words) {
    EXPECT_THAT(
        ParseLabelledRows("k.jsonl", row, Options()),
        StatusIsWith(absl::StatusCode::kInvalidArgument, HasSubstr(words)));
  };
  error(R"({"prompt_ids":[1],"completion_ids":[4],"label":1})",
        "k.jsonl:1: 'label'");
  error(R"({"prompt_ids":[1],"completion_ids":[10],"label":true})",
        "ids from 0 to 9");
  error(R"({"prompt_ids":[1],"label":true})", "'completion'");
  error("\n", "no labelled rows");
}

TEST(ComparisonsTest, ThePromptIsTheInstructionOfAnEncoderDecoder) {
  ComparisonOptions options = Options();
  options.start = 7;
  ASSERT_OK_AND_ASSIGN(
      const auto rows,
      ParseComparisons("c.jsonl",
                       R"({"instruction_ids":[1,2],"response_ids":[[3],[4]],)"
                       R"("ranking":[1,2]})",
                       options));
  EXPECT_THAT(rows[0].completions[0].ids, ElementsAre(7, 3));
  EXPECT_THAT(rows[0].completions[0].instruction_ids, ElementsAre(1, 2));
}

TEST(ComparisonsTest, AnEncoderDecodersContextFollowsTheStartToken) {
  ComparisonOptions options = Options();
  options.start = 7;
  const char* row = R"({"instruction_ids":[1,2],"prompt_ids":[7,5],)"
                    R"("response_ids":[[3],[4]],"ranking":[1,2]})";
  ASSERT_OK_AND_ASSIGN(const auto rows,
                       ParseComparisons("c.jsonl", row, options));
  EXPECT_THAT(rows[0].completions[1].ids, ElementsAre(7, 5, 4));
  EXPECT_THAT(rows[0].completions[1].instruction_ids, ElementsAre(1, 2));
  EXPECT_EQ(rows[0].completions[1].first_target, 2);
  // Another kind of model would see half of that prompt.
  EXPECT_THAT(ParseComparisons("c.jsonl", row, Options()),
              StatusIsWith(absl::StatusCode::kInvalidArgument,
                           HasSubstr("c.jsonl:1: instruction_ids")));
}

TEST(ComparisonsTest, AnEncoderDecodersPairsAsText) {
  BpeOptions bpe;
  bpe.vocab_size = 257;
  bpe.texts = {"x"};
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::TrainByteLevelBpe(bpe));
  ComparisonOptions options;
  options.tokenizer = tokenizer.get();
  options.vocab_size = 257;
  options.max_positions = 6;
  options.end_id = 0;
  options.start = 0;
  const auto ids = [&](std::string_view text) {
    return *tokenizer->Encode(text);
  };
  ASSERT_OK_AND_ASSIGN(
      const auto rows,
      ParseComparisons("c.jsonl",
                       "{\"instruction\":\"do\",\"context\":\"c\","
                       "\"chosen\":\"a\",\"rejected\":\"b\"}\n"
                       "{\"chosen\":\"a\",\"rejected\":\"b\"}\n",
                       options));
  const Sequence& chosen = rows[0].completions[0];
  EXPECT_EQ(chosen.instruction_ids, ids("do"));
  EXPECT_THAT(chosen.ids, ElementsAre(0, ids("c")[0], ids("a")[0], 0));
  EXPECT_EQ(chosen.first_target, 2);
  // No prompt: the empty instruction.
  EXPECT_THAT(rows[1].completions[0].instruction_ids, ElementsAre(0));
  EXPECT_THAT(ParseComparisons("c.jsonl",
                               R"({"instruction":"do","chosen":"abcdef",)"
                               R"("rejected":"b"})",
                               options),
              StatusIsWith(absl::StatusCode::kInvalidArgument,
                           HasSubstr("have 8 tokens, the model takes 6")));
}

TEST(ComparisonsTest, ErrorsNameFileAndLine) {
  const auto expect = [](std::string_view jsonl, std::string_view what) {
    EXPECT_THAT(ParseComparisons("c.jsonl", jsonl, Options()),
                StatusIsWith(absl::StatusCode::kInvalidArgument,
                             ::testing::AllOf(HasSubstr("c.jsonl"),
                                              HasSubstr(std::string(what)))));
  };
  expect("\n{\"prompt_ids\":[1]", ":2: expected a JSON object");
  expect(R"({"prompt_ids":[1],"response_ids":[[2],[3]],"ranking":[1]})",
         "found 2 and 1");
  expect(R"({"prompt_ids":[1],"response_ids":[[2],[10]],"ranking":[1,2]})",
         "ids from 0 to 9");
  expect(R"({"prompt_ids":[1,1,1,1,1,1],"response_ids":[[2],[3]],)"
         R"("ranking":[1,2]})",
         "the model takes 6");
  expect(R"({"prompt":"x","responses":["a","b"],"ranking":[1,2]})",
         "no tokenizer");
  expect(R"({"prompt_ids":[1],"response_ids":[[2],[3]],"ranking":[0,1]})",
         "places from 1");
  expect("\n \n", "no comparisons");
}

}  // namespace
}  // namespace cox
