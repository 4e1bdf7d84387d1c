#include "learner/comparisons.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using testing::StatusIsWith;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

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

TEST(ComparisonsTest, ErrorsNameFileAndLine) {
  const auto expect = [](std::string_view jsonl, std::string_view what) {
    EXPECT_THAT(
        ParseComparisons("c.jsonl", jsonl, Options()),
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
