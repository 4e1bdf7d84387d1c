#include "lib/data/cursor.h"

#include <algorithm>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(ShuffledCursorTest, EveryEpochVisitsEveryRowOnce) {
  ShuffledCursor cursor(7, 1, "sft");
  for (int epoch = 0; epoch < 3; ++epoch) {
    EXPECT_EQ(cursor.epoch(), epoch);
    const std::vector<int64_t> rows = cursor.Take(7);
    EXPECT_THAT(std::set<int64_t>(rows.begin(), rows.end()), SizeIs(7));
  }
}

TEST(ShuffledCursorTest, EpochsHaveDifferentOrders) {
  ShuffledCursor cursor(50, 1, "sft");
  const std::vector<int64_t> first = cursor.Take(50);
  EXPECT_NE(cursor.Take(50), first);
}

TEST(ShuffledCursorTest, SeedAndStreamChangeTheOrder) {
  const std::vector<int64_t> base = ShuffledCursor(50, 1, "sft").Take(50);
  EXPECT_EQ(ShuffledCursor(50, 1, "sft").Take(50), base);
  EXPECT_NE(ShuffledCursor(50, 2, "sft").Take(50), base);
  EXPECT_NE(ShuffledCursor(50, 1, "ppo").Take(50), base);
}

TEST(ShuffledCursorTest, ResumesFromItsPosition) {
  ShuffledCursor whole(11, 4, "ppo");
  const std::vector<int64_t> expected = whole.Take(40);
  for (const int64_t position : {0, 5, 11, 29}) {
    ShuffledCursor resumed(11, 4, "ppo");
    resumed.Seek(position);
    const std::vector<int64_t> rest(expected.begin() + position,
                                    expected.end());
    EXPECT_EQ(resumed.Take(40 - position), rest);
    EXPECT_EQ(resumed.position(), 40);
  }
}

TEST(ShuffledCursorTest, AtIsAPureFunctionOfThePosition) {
  const ShuffledCursor cursor(5, 9, "x");
  const int64_t later = cursor.At(23);
  const int64_t earlier = cursor.At(2);
  EXPECT_EQ(cursor.At(23), later);
  EXPECT_EQ(cursor.At(2), earlier);
  EXPECT_EQ(cursor.position(), 0);
}

constexpr int32_t kEnd = 0;

TEST(PackedTokensTest, JoinsDocumentsWithEndTokens) {
  ASSERT_OK_AND_ASSIGN(const PackedTokens packed,
                       PackedTokens::Create({{1, 2, 3}}, kEnd, 2, 1));
  // 1 2 | 3 end
  ASSERT_EQ(packed.num_blocks(), 2);
  EXPECT_THAT(packed.StreamBlock(0), ElementsAre(1, 2));
  EXPECT_THAT(packed.StreamBlock(1), ElementsAre(3, kEnd));
}

TEST(PackedTokensTest, KeepsEveryTokenButTheTrailingRest) {
  const std::vector<std::vector<int32_t>> documents = {
      {1, 1}, {2}, {3, 3, 3}, {4, 4, 4, 4}};
  // 10 tokens and 4 ends: 4 blocks of 3 and 2 tokens left over.
  ASSERT_OK_AND_ASSIGN(const PackedTokens packed,
                       PackedTokens::Create(documents, kEnd, 3, 5));
  EXPECT_EQ(packed.num_blocks(), 4);
  std::vector<int32_t> all;
  for (int64_t i = 0; i < packed.num_blocks(); ++i) {
    const std::vector<int32_t> block = packed.StreamBlock(i);
    EXPECT_THAT(block, SizeIs(3));
    all.insert(all.end(), block.begin(), block.end());
  }
  // Every document stays in one piece: equal ids are neighbours.
  for (const int32_t id : {1, 2, 3, 4}) {
    const auto first = std::find(all.begin(), all.end(), id);
    const auto count = std::count(all.begin(), all.end(), id);
    EXPECT_TRUE(
        std::all_of(first, first + count, [id](int32_t x) { return x == id; }));
  }
}

TEST(PackedTokensTest, BlockIsAPureFunctionOfSeedAndNumber) {
  std::vector<std::vector<int32_t>> documents;
  for (int32_t i = 1; i <= 20; ++i) {
    documents.push_back({i, i, i});
  }
  ASSERT_OK_AND_ASSIGN(const PackedTokens a,
                       PackedTokens::Create(documents, kEnd, 4, 7));
  ASSERT_OK_AND_ASSIGN(const PackedTokens b,
                       PackedTokens::Create(documents, kEnd, 4, 7));
  ASSERT_OK_AND_ASSIGN(const PackedTokens other,
                       PackedTokens::Create(documents, kEnd, 4, 8));
  std::multiset<std::vector<int32_t>> epoch;
  bool differs = false;
  for (int64_t n = 39; n >= 0; --n) {
    EXPECT_EQ(a.Block(n), b.Block(n));
    differs = differs || a.Block(n) != other.Block(n);
    if (n < a.num_blocks()) {
      epoch.insert(a.Block(n));
    }
  }
  EXPECT_TRUE(differs);
  std::multiset<std::vector<int32_t>> stream;
  for (int64_t i = 0; i < a.num_blocks(); ++i) {
    stream.insert(a.StreamBlock(i));
  }
  EXPECT_EQ(epoch, stream);
}

TEST(PackedTokensTest, TooLittleTextIsAnError) {
  EXPECT_THAT(PackedTokens::Create({{1}}, kEnd, 3, 1),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("found 2 tokens")));
  EXPECT_THAT(PackedTokens::Create({}, kEnd, 3, 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(PackedTokens::Create({{1, 2}}, kEnd, 1, 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace cox
