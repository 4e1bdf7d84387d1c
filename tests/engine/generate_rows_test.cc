#include "lib/engine/generate_rows.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "lib/engine/fake.h"

namespace cox {
namespace {

using ::testing::HasSubstr;

GenerateRequest TwoRows() {
  GenerateRequest request;
  request.prompts = {{1, 2}, {3}};
  request.prompt_ids = {10, 11};
  request.sample_indices = {0, 4};
  request.seed = 9;
  request.max_new_tokens = 3;
  request.sampling.eos_ids = {0};
  return request;
}

TEST(GenerateRowsTest, DrawsTheTokenOfTheRowsOwnUniform) {
  GenerateRequest request = TwoRows();
  GenerateRows rows(request);
  // Four equal tokens: token = floor(4 u), log-prob -log 4.
  const std::vector<float> logits(4, 0.5f);
  ASSERT_TRUE(rows.Sample(1, logits).ok());
  const double u = TokenUniform(9, 11, 4, 0);
  EXPECT_EQ(rows.last_token(1), static_cast<int32_t>(4 * u));
  GenerateResult result = rows.Take();
  EXPECT_NEAR(result.logprobs[1][0], -1.3862944, 1e-6);
  EXPECT_TRUE(result.tokens[0].empty());
}

TEST(GenerateRowsTest, StopsAtEosOrAtTheLimit) {
  GenerateRequest request = TwoRows();
  GenerateRows rows(request);
  const std::vector<float> eos = {100.0f, 0.0f, 0.0f};
  const std::vector<float> other = {0.0f, 100.0f, 0.0f};
  ASSERT_TRUE(rows.Sample(0, eos).ok());
  EXPECT_TRUE(rows.finished(0));
  EXPECT_EQ(rows.Active(), std::vector<int64_t>{1});
  for (int t = 0; t < 3; ++t) ASSERT_TRUE(rows.Sample(1, other).ok());
  EXPECT_TRUE(rows.Active().empty());
  GenerateResult result = rows.Take();
  EXPECT_EQ(result.finish[0], FinishReason::kStop);
  EXPECT_EQ(result.finish[1], FinishReason::kLength);
  EXPECT_EQ(result.tokens[0], std::vector<int32_t>{0});  // EOS included
}

std::shared_ptr<const Tokenizer> ByteTokens() {
  BpeOptions options;
  options.vocab_size = 257;
  options.special_tokens = {"<end>"};
  options.texts = {"abc"};
  auto trained = Tokenizer::TrainByteLevelBpe(options);
  COX_CHECK(trained.ok());
  return *std::move(trained);
}

// Feeds `text` to one row until it is finished.
GenerateResult Write(GenerateRequest request, const std::string& text) {
  request.prompts = {{1}};
  request.prompt_ids = {0};
  request.sample_indices = {0};
  request.max_new_tokens = 32;
  const std::vector<int32_t> ids = request.tokenizer->Encode(text).value();
  GenerateRows rows(request);
  for (size_t t = 0; !rows.finished(0); ++t) {
    std::vector<float> logits(257, -1e9f);
    logits[t < ids.size() ? static_cast<size_t>(ids[t]) : 0] = 0;
    EXPECT_TRUE(rows.Sample(0, logits).ok());
  }
  return rows.Take();
}

TEST(GenerateRowsTest, AStopStringEndsARowWithTheTokenThatCompletesIt) {
  GenerateRequest request;
  request.tokenizer = ByteTokens();
  request.stop_strings = {"END", "\n\n"};
  const auto text = [&](const GenerateResult& result) {
    return request.tokenizer->Decode(result.tokens[0], false).value();
  };
  GenerateResult result = Write(request, "an END of it");
  EXPECT_EQ(text(result), "an END");
  EXPECT_EQ(result.finish[0], FinishReason::kStop);
  EXPECT_EQ(result.logprobs[0].size(), result.tokens[0].size());
  EXPECT_EQ(text(Write(request, "a\n\nb")), "a\n\n");
  // Without one: the limit.
  result = Write(request, "EN D" + std::string(40, 'x'));
  EXPECT_EQ(result.tokens[0].size(), 32u);
  EXPECT_EQ(result.finish[0], FinishReason::kLength);
  // A special token may be named; it counts as text here.
  request.stop_strings = {"b<end>"};
  EXPECT_EQ(text(Write(request, "ab<end>c")), "ab<end>");
}

TEST(GenerateRowsTest, StopStringsWaitForTheLeastLengthAndForWholeCharacters) {
  GenerateRequest request;
  request.tokenizer = ByteTokens();
  request.stop_strings = {"\xC3\xA9"};
  EXPECT_EQ(Write(request, "x\xC3\xA9y").tokens[0].size(), 3u);
  request.stop_strings = {"ab"};
  request.sampling.min_new_tokens = 3;
  EXPECT_EQ(Write(request, "abxabx").tokens[0].size(), 5u);
  request.sampling.min_new_tokens = 2;
  EXPECT_EQ(Write(request, "abxabx").tokens[0].size(), 2u);
}

TEST(GenerateRowsTest, ScheduledLengthsEndWithEosAndNeverBefore) {
  GenerateRequest request = TwoRows();
  request.lengths = {3, 1};
  GenerateRows rows(request);
  // EOS is by far the likeliest token; without it ids 1 and 2 are equal.
  const std::vector<float> logits = {50.0f, 1.0f, 1.0f};
  for (int t = 0; t < 3; ++t) ASSERT_TRUE(rows.Sample(0, logits).ok());
  ASSERT_TRUE(rows.Sample(1, logits).ok());
  EXPECT_TRUE(rows.Active().empty());
  const GenerateResult result = rows.Take();
  EXPECT_GT(result.tokens[0][0], 0);
  EXPECT_GT(result.tokens[0][1], 0);
  EXPECT_EQ(result.tokens[0][2], 0);
  EXPECT_NEAR(result.logprobs[0][0], -0.6931472, 1e-6);  // log 1/2
  EXPECT_NEAR(result.logprobs[0][2], 0.0, 1e-6);
  EXPECT_EQ(result.tokens[1], std::vector<int32_t>{0});
  EXPECT_EQ(result.finish[0], FinishReason::kStop);
  request.lengths = {4, 1};
  EXPECT_THAT(
      std::string(
          ValidateGenerateRequest(request, FakeModelConfig(8, 4)).message()),
      HasSubstr("lengths: expected 1 to max_new_tokens 3, found 4"));
}

TEST(GenerateRowsTest, StopStringsNeedATokenizer) {
  GenerateRequest request = TwoRows();
  request.stop_strings = {"x"};
  const ModelConfig config = FakeModelConfig(8, 4);
  absl::Status status = ValidateGenerateRequest(request, config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("need a tokenizer"));
  request.tokenizer = ByteTokens();
  EXPECT_TRUE(ValidateGenerateRequest(request, config).ok());
  request.stop_strings = {""};
  EXPECT_FALSE(ValidateGenerateRequest(request, config).ok());
}

TEST(GenerateRowsTest, TellsEachTokenAsItIsDrawn) {
  GenerateRequest request = TwoRows();
  std::vector<std::pair<int64_t, int32_t>> told;
  request.on_token = [&](int64_t row, int32_t token) {
    told.emplace_back(row, token);
  };
  GenerateRows rows(request);
  const std::vector<float> other = {0.0f, 100.0f, 0.0f};
  ASSERT_TRUE(rows.Sample(1, other).ok());
  ASSERT_TRUE(rows.Sample(0, other).ok());
  EXPECT_EQ(told, (std::vector<std::pair<int64_t, int32_t>>{{1, 1}, {0, 1}}));
}

TEST(GenerateRowsTest, ReportsLogitsThatAreNoNumbers) {
  GenerateRequest request = TwoRows();
  GenerateRows rows(request);
  const std::vector<float> bad = {0.0f, std::nanf("")};
  absl::Status status = rows.Sample(0, bad);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 0, token 0"));
}

TEST(ValidateGenerateRequestTest, NamesTheField) {
  const ModelConfig config =
      FakeModelConfig(8, 4, HeadKind::kLanguageModel, /*max_positions=*/4);
  auto error = [&](const GenerateRequest& request) {
    return std::string(ValidateGenerateRequest(request, config).message());
  };
  EXPECT_TRUE(ValidateGenerateRequest(TwoRows(), config).ok());
  GenerateRequest request = TwoRows();
  request.prompts[1].clear();
  EXPECT_THAT(error(request), HasSubstr("prompts: row 1 is empty"));
  request = TwoRows();
  request.prompts[0][1] = 8;
  EXPECT_THAT(error(request), HasSubstr("expected ids 0 to 7, found 8"));
  request = TwoRows();
  request.prompt_ids.pop_back();
  EXPECT_THAT(error(request), HasSubstr("prompt_ids: expected 2 rows"));
  request = TwoRows();
  request.max_new_tokens = 4;  // 2 + 4 - 1 positions of 4
  EXPECT_THAT(error(request), HasSubstr("needs 5 positions"));
  request = TwoRows();
  request.max_new_tokens = 0;
  EXPECT_THAT(error(request), HasSubstr("max_new_tokens"));
  request = TwoRows();
  request.sampling.top_p = 0;
  EXPECT_THAT(error(request), HasSubstr("top_p"));
}

}  // namespace
}  // namespace cox
