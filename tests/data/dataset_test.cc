#include "lib/data/dataset.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(ParseRowTest, TellsTheKindsByTheirKeys) {
  const auto kind = [](std::string_view line) {
    const absl::StatusOr<Row> row = ParseRow(line);
    COX_CHECK(row.ok());
    return row->kind;
  };
  EXPECT_EQ(kind(R"({"text": "a"})"), RowKind::kText);
  EXPECT_EQ(kind(R"({"prompt": "a"})"), RowKind::kPrompt);
  EXPECT_EQ(kind(R"({"prompt_ids": [1, 2]})"), RowKind::kPromptIds);
  EXPECT_EQ(kind(R"({"prompt": "a", "completion": ""})"), RowKind::kCompletion);
  EXPECT_EQ(kind(R"({"messages": [{"role": "user", "content": "x"}]})"),
            RowKind::kMessages);
  EXPECT_EQ(kind(R"({"chosen": "a", "rejected": "b"})"), RowKind::kPair);
  EXPECT_EQ(kind(R"({"prompt": "p", "responses": ["a", "b"],
                     "ranking": [1, 1], "id": 4, "meta": {}})"),
            RowKind::kRanking);
}

TEST(ParseRowTest, KeepsTheValues) {
  ASSERT_OK_AND_ASSIGN(
      const Row row, ParseRow(R"({"prompt": "p", "responses": ["a", "b", "c"],)"
                              R"( "ranking": [2, 1, 2]})"));
  EXPECT_EQ(row.prompt, "p");
  EXPECT_THAT(row.responses, ElementsAre("a", "b", "c"));
  EXPECT_THAT(row.ranking, ElementsAre(2, 1, 2));
}

TEST(ParseRowTest, AnInstructionWithItsContextStandsForThePrompt) {
  ASSERT_OK_AND_ASSIGN(Row row,
                       ParseRow(R"({"instruction": "i", "completion": "c"})"));
  EXPECT_EQ(row.kind, RowKind::kCompletion);
  EXPECT_EQ(row.instruction, "i");
  EXPECT_EQ(row.prompt, "");
  EXPECT_EQ(PromptText(row), "i\n");
  ASSERT_OK_AND_ASSIGN(row,
                       ParseRow(R"({"instruction": "i", "context": "x"})"));
  EXPECT_EQ(row.kind, RowKind::kPrompt);
  EXPECT_EQ(PromptText(row), "i\nx");
  ASSERT_OK_AND_ASSIGN(row, ParseRow(R"({"instruction": "i", "context": "x",)"
                                     R"( "chosen": "a", "rejected": "b"})"));
  EXPECT_EQ(row.kind, RowKind::kPair);
  EXPECT_EQ(row.prompt, "x");
}

struct BadRow {
  const char* line;
  const char* message;
};

class BadRowTest : public ::testing::TestWithParam<BadRow> {};

TEST_P(BadRowTest, SaysWhatIsExpectedAndFound) {
  EXPECT_THAT(ParseRow(GetParam().line),
              StatusIs(kInvalid, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Rows, BadRowTest,
    ::testing::Values(
        BadRow{"{\"text\": }", "found a syntax error at column 10"},
        BadRow{R"({"instruction": "i", "prompt": "p"})",
               "expected 'prompt' or 'instruction', found both"},
        BadRow{R"({"context": "x", "completion": "c"})",
               "expected 'context' beside an 'instruction', found none"},
        BadRow{R"({"instruction": "", "context": "x"})",
               "a non-empty string 'instruction'"},
        BadRow{R"({"text": "t", "instruction": "i"})",
               "only the keys 'text', found 'instruction'"},
        BadRow{"[1]", "expected a JSON object, found a value of type array"},
        BadRow{"{}", "none of these keys"},
        BadRow{"{\"text\": \"\"}", "found an empty string"},
        BadRow{"{\"text\": 3}", "found a value of type number"},
        BadRow{"{\"text\": \"\xC3\"}", "expected UTF-8"},
        BadRow{"{\"text\": \"\xED\xA0\x80\"}", "sequence at column 11"},
        BadRow{"{\"text\": \"a\", \"txet\": 1}", "found 'txet'"},
        BadRow{"{\"chosen\": \"a\"}", "'rejected', found no such key"},
        BadRow{"{\"completion\": \"a\"}", "'prompt', found no such key"},
        BadRow{"{\"prompt_ids\": []}", "found an empty list"},
        BadRow{"{\"prompt_ids\": [-1]}", "found element -1"},
        BadRow{"{\"prompt_ids\": [1.5]}", "found element 1.5"},
        BadRow{"{\"prompt_ids\": [4294967296]}", "found element 4294967296"},
        BadRow{"{\"messages\": [{\"role\": \"user\"}]}", "'content'"},
        BadRow{"{\"messages\": []}", "non-empty list 'messages'"},
        BadRow{R"({"prompt": "p", "responses": ["a"], "ranking": [1]})",
               "found 1 of them"},
        BadRow{R"({"prompt": "p", "ranking": [1, 2]})", "'responses'"},
        BadRow{R"({"prompt": "p", "responses": ["a", "b"], "ranking": [1]})",
               "a 'ranking' of 2 places, found 1"},
        BadRow{R"({"prompt": "p", "responses": ["a", "b"],)"
               R"( "ranking": [2, 2]})",
               "found 2 to 2"},
        BadRow{R"({"prompt": "p", "responses": ["a", "b"],)"
               R"( "ranking": [1, 3]})",
               "found 1 to 3"}));

TEST(ParseRowTest, RejectsHugeAndDeepRows) {
  EXPECT_THAT(ParseRow(std::string(kMaxRowBytes + 1, ' ')),
              StatusIs(kInvalid, HasSubstr("at most")));
  EXPECT_THAT(ParseRow(std::string(1 << 20, '[')), StatusIs(kInvalid));
}

class LoadDatasetTest : public ::testing::Test {
 protected:
  std::string Write(std::string_view name, std::string_view content) {
    const std::string path = dir_.Join(name);
    COX_CHECK(WriteFileDurably(Fs::Real(), path, content).ok());
    return path;
  }

  testing::TempDir dir_;
};

TEST_F(LoadDatasetTest, NumbersLinesAndSkipsBlankOnes) {
  const std::string path =
      Write("a.jsonl",
            "\xEF\xBB\xBF{\"text\": \"one\"}\r\n\n  \n{\"text\": \"two\"}");
  ASSERT_OK_AND_ASSIGN(const Dataset dataset, LoadDataset(Fs::Real(), {path}));
  ASSERT_EQ(dataset.size(), 2);
  EXPECT_EQ(dataset.kind, RowKind::kText);
  EXPECT_EQ(dataset.rows[1].text, "two");
  EXPECT_EQ(dataset.Where(dataset.rows[1]), path + ":4");
}

TEST_F(LoadDatasetTest, ErrorsNamePathAndLine) {
  const std::string path =
      Write("a.jsonl", "{\"text\": \"one\"}\n{\"prompt\": \"p\"}\n");
  EXPECT_THAT(
      LoadDataset(Fs::Real(), {path}),
      StatusIs(kInvalid, HasSubstr(path + ":2: expected a row of kind text, "
                                          "found prompt")));
  EXPECT_THAT(LoadDataset(Fs::Real(), {path}, RowKind::kPair),
              StatusIs(kInvalid, HasSubstr(path + ":1: expected")));
  EXPECT_THAT(LoadDataset(Fs::Real(), {dir_.Join("none.jsonl")}),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(LoadDataset(Fs::Real(), {dir_.Join("none")}),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(LoadDatasetTest, AnEmptyDatasetIsAnError) {
  EXPECT_THAT(LoadDataset(Fs::Real(), {Write("a.jsonl", "\n")}),
              StatusIs(kInvalid, HasSubstr("empty dataset")));
  EXPECT_THAT(LoadDataset(Fs::Real(), {}), StatusIs(kInvalid));
}

TEST_F(LoadDatasetTest, ParagraphsOfATextFileAreRows) {
  const std::string path = Write("a.txt", "\none\ntwo\n \n\nthree\n");
  ASSERT_OK_AND_ASSIGN(const Dataset dataset, LoadDataset(Fs::Real(), {path}));
  ASSERT_EQ(dataset.size(), 2);
  EXPECT_EQ(dataset.rows[0].text, "one\ntwo");
  EXPECT_EQ(dataset.rows[0].line, 2);
  EXPECT_EQ(dataset.rows[1].text, "three");
  EXPECT_EQ(dataset.rows[1].line, 6);
  EXPECT_THAT(LoadDataset(Fs::Real(), {Write("b.txt", "ok\n\n\xFF\n")}),
              StatusIs(kInvalid, HasSubstr("b.txt:3: expected UTF-8")));
}

TEST_F(LoadDatasetTest, AFolderMeansItsFilesInOrder) {
  Write("02.jsonl", "{\"text\": \"b\"}\n");
  Write("01.jsonl", "{\"text\": \"a\"}\n");
  Write("README.md", "not data");
  ASSERT_OK_AND_ASSIGN(const Dataset dataset,
                       LoadDataset(Fs::Real(), {dir_.path()}));
  ASSERT_EQ(dataset.size(), 2);
  EXPECT_EQ(dataset.rows[0].text, "a");
  EXPECT_EQ(dataset.rows[1].file, 1);
}

TEST_F(LoadDatasetTest, RowsWithAPromptServeAsPrompts) {
  const std::string path = Write("a.jsonl",
                                 "{\"prompt\": \"p\", \"completion\": \"c\"}\n"
                                 "{\"prompt\": \"q\"}\n");
  ASSERT_OK_AND_ASSIGN(const Dataset dataset,
                       LoadDataset(Fs::Real(), {path}, RowKind::kPrompt));
  EXPECT_EQ(dataset.kind, RowKind::kPrompt);
  EXPECT_EQ(dataset.rows[0].prompt, "p");
  EXPECT_EQ(dataset.rows[0].completion, "");
  EXPECT_THAT(LoadDataset(Fs::Real(),
                          {Write("b.jsonl",
                                 "{\"chosen\": \"a\", \"rejected\": \"b\"}\n")},
                          RowKind::kPrompt),
              StatusIs(kInvalid, HasSubstr("no prompt")));
}

TEST_F(LoadDatasetTest, TheHashIsOfTheContent) {
  const std::string a = Write("a.jsonl", "{\"text\": \"a\"}\n");
  const std::string b = Write("b.jsonl", "{\"text\": \"a\"}\n");
  const std::string c = Write("c.jsonl", "{\"text\": \"c\"}\n");
  const auto hash = [](const std::vector<std::string>& paths) {
    return LoadDataset(Fs::Real(), paths)->hash;
  };
  EXPECT_EQ(hash({a}), hash({b}));
  EXPECT_NE(hash({a}), hash({c}));
  EXPECT_NE(hash({a, c}), hash({c, a}));
}

}  // namespace
}  // namespace cox
