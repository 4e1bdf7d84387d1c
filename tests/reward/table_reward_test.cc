#include "reward/table_reward.h"

#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

using Ids = std::vector<int32_t>;

std::optional<double> Look(const TableReward& table, Ids prompt, Ids response) {
  return table.Lookup(prompt, response);
}

TEST(TableRewardTest, AnOmittedPromptMeansAnyAndTheExactOneWins) {
  ASSERT_OK_AND_ASSIGN(const TableReward table,
                       TableReward::FromJson(R"({"default": -0.5, "entries": [
        {"response": [1, 0], "reward": 1},
        {"prompt": [7], "response": [1, 0], "reward": 2.5},
        {"prompt": [], "response": [], "reward": 3}]})"));
  EXPECT_EQ(Look(table, {7}, {1, 0}), 2.5);
  EXPECT_EQ(Look(table, {8}, {1, 0}), 1.0);
  EXPECT_EQ(Look(table, {7}, {1}), -0.5);
  EXPECT_EQ(Look(table, {}, {}), 3.0);
  EXPECT_EQ(table.size(), 3u);
}

TEST(TableRewardTest, NoEntryAndNoDefaultIsExcluded) {
  for (const char* text :
       {R"({"default": null, "entries": [{"response": [1], "reward": 0}]})",
        R"({"entries": [{"response": [1], "reward": 0}]})"}) {
    ASSERT_OK_AND_ASSIGN(const TableReward table, TableReward::FromJson(text));
    EXPECT_EQ(Look(table, {9}, {1}), 0.0);
    EXPECT_EQ(Look(table, {9}, {2}), std::nullopt);
  }
}

TEST(TableRewardTest, SaysWhatIsWrongAndWhere) {
  const std::pair<const char*, const char*> cases[] = {
      {"[]", "JSON object"},
      {"{", "JSON object"},
      {R"({"defualt": 1})", "defualt"},
      {R"({"default": "x"})", "default"},
      {R"({"entries": {}})", "entries"},
      {R"({"entries": [{"response": [1]}]})", "entries[0]"},
      {R"({"entries": [{"response": [-1], "reward": 1}]})",
       "entries[0].response"},
      {R"({"entries": [{"response": [1.5], "reward": 1}]})",
       "entries[0].response"},
      {R"({"entries": [{"response": [3000000000], "reward": 1}]})",
       "entries[0].response"},
      {R"({"entries": [{"response": [1], "reward": null}]})",
       "entries[0].reward"},
      {R"({"entries": [{"response": [1], "reward": 1},
                       {"response": [1], "reward": 2}]})",
       "entries[1]"},
  };
  for (const auto& [text, where] : cases) {
    EXPECT_THAT(TableReward::FromJson(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(where)))
        << text;
  }
}

TEST(TableRewardTest, ErrorsOfAFileNameIt) {
  testing::TempDir dir;
  const std::string path = dir.Join("table.json");
  EXPECT_THAT(TableReward::FromFile(Fs::Real(), path),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("table.json")));
  ASSERT_OK(WriteFileDurably(Fs::Real(), path, "{}x"));
  EXPECT_THAT(
      TableReward::FromFile(Fs::Real(), path),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("table.json")));
}

}  // namespace
}  // namespace cox
