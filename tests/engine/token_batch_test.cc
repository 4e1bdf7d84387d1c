#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/engine/engine.h"
#include "lib/engine/fake.h"

namespace cox {
namespace {

using ::testing::HasSubstr;

TokenBatch Good() {
  TokenBatch batch;
  batch.batch = 2;
  batch.length = 3;
  batch.ids = {1, 2, 3, 1, -100, 9999};  // row 1: one token, then padding
  batch.lengths = {3, 1};
  batch.scored = {1, 1, 0, 0, 0, 0};
  return batch;
}

std::string ErrorOf(const TokenBatch& batch) {
  absl::Status status = batch.Validate(FakeModelConfig(8, 4));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(TokenBatchTest, AcceptsGarbageUnderPadding) {
  EXPECT_TRUE(Good().Validate(FakeModelConfig(8, 4)).ok());
}

TEST(TokenBatchTest, NamesWhatIsWrong) {
  TokenBatch batch = Good();
  batch.ids[1] = 8;
  EXPECT_THAT(ErrorOf(batch), HasSubstr("[0, 1]: expected 0 to 7, found 8"));
  batch = Good();
  batch.lengths[1] = 0;
  EXPECT_THAT(ErrorOf(batch), HasSubstr("length of row 1"));
  batch = Good();
  batch.scored[2] = 1;  // the last real token has no successor
  EXPECT_THAT(ErrorOf(batch), HasSubstr("scored: set at [0, 2]"));
  batch = Good();
  batch.ids.pop_back();
  EXPECT_THAT(ErrorOf(batch), HasSubstr("expected 2 x 3 ids, found 5"));
  batch = Good();
  batch.scored.clear();
  EXPECT_THAT(ErrorOf(batch), HasSubstr("scored"));
  EXPECT_THAT(ErrorOf(TokenBatch()), HasSubstr("batch"));
}

TEST(TokenBatchTest, ScalarHeadsNeedNoScoredMask) {
  TokenBatch batch = Good();
  batch.scored.clear();
  EXPECT_TRUE(batch.Validate(FakeModelConfig(8, 4, HeadKind::kScalar)).ok());
}

TEST(TokenBatchTest, LearnedPositionsBoundTheLength) {
  absl::Status status = Good().Validate(
      FakeModelConfig(8, 4, HeadKind::kLanguageModel, /*max_positions=*/2));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("row 0 has 3 tokens, the model takes 2"));
}

}  // namespace
}  // namespace cox
