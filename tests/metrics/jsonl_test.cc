#include "lib/metrics/jsonl.h"

#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

class MetricsWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = JoinPath(::testing::TempDir(), "cox_metrics_writer");
    ASSERT_TRUE(Fs::Real().RemoveAll(dir_).ok());
    ASSERT_TRUE(Fs::Real().MakeDirs(dir_).ok());
    path_ = JoinPath(dir_, "metrics.jsonl");
  }
  void TearDown() override { (void)Fs::Real().RemoveAll(dir_); }
  std::string Text() { return Fs::Real().ReadAll(path_).value(); }
  std::string dir_;
  std::string path_;
  FakeClock clock_;
};

TEST_F(MetricsWriterTest, WritesOneSortedObjectPerStep) {
  clock_.Advance(absl::Milliseconds(2500));
  auto writer = MetricsWriter::Open(Fs::Real(), path_, clock_);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)
                  ->Append("ppo", 3,
                           {{"objective/kl", 1.25},
                            {"lr", 0.1},
                            {"a", kNaN},
                            {"b", -kInf},
                            {"c", kInf}})
                  .ok());
  ASSERT_TRUE((*writer)->Close().ok());
  EXPECT_EQ(Text(),
            "{\"stage\":\"ppo\",\"step\":3,\"a\":\"NaN\",\"b\":\"-Infinity\","
            "\"c\":\"Infinity\",\"lr\":0.1,\"objective/kl\":1.25,"
            "\"ts\":2.500}\n");
}

TEST_F(MetricsWriterTest, ReadsBackWhatItWrote) {
  auto writer = MetricsWriter::Open(Fs::Real(), path_, clock_);
  ASSERT_TRUE(writer.ok());
  const std::map<std::string, double> values = {
      {"x", 0.1}, {"y", 1e-300}, {"quote\"\n", -3}, {"inf", kInf}};
  ASSERT_TRUE((*writer)->Append("sft", 1, values).ok());
  const auto rows = LoadMetricRows(path_);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 1u);
  EXPECT_EQ((*rows)[0].stage, "sft");
  EXPECT_EQ((*rows)[0].step, 1);
  EXPECT_EQ((*rows)[0].metrics, values);
}

TEST_F(MetricsWriterTest, CutsOffALineThatACrashTore) {
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), path_,
                               "{\"stage\":\"a\",\"step\":1,\"ts\":0}\n"
                               "{\"stage\":\"a\",\"st")
                  .ok());
  auto writer = MetricsWriter::Open(Fs::Real(), path_, clock_);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->Append("a", 2, {}).ok());
  EXPECT_EQ(Text(),
            "{\"stage\":\"a\",\"step\":1,\"ts\":0}\n"
            "{\"stage\":\"a\",\"step\":2,\"ts\":0.000}\n");
}

TEST_F(MetricsWriterTest, RefusesReservedNames) {
  auto writer = MetricsWriter::Open(Fs::Real(), path_, clock_);
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ((*writer)->Append("a", 1, {{"step", 1}}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Text(), "");
}

TEST(ParseMetricRowsTest, KeepsTheLastLineOfAStep) {
  const auto rows = ParseMetricRows(
      "{\"stage\":\"ppo\",\"step\":1,\"x\":1}\n"
      "{\"stage\":\"ppo\",\"step\":2,\"x\":2}\n\n"
      "{\"stage\":\"ppo\",\"step\":1,\"x\":7}\n"
      "{\"stage\":\"eval\",\"step\":1,\"x\":3}\n"
      "{\"stage\":\"ppo\",\"ste");
  ASSERT_TRUE(rows.ok());
  ASSERT_EQ(rows->size(), 3u);
  EXPECT_EQ((*rows)[0].metrics.at("x"), 7);
  EXPECT_EQ((*rows)[1].metrics.at("x"), 2);
  EXPECT_EQ((*rows)[2].stage, "eval");
}

TEST(ParseMetricRowsTest, NamesTheLineThatIsNoRow) {
  const auto message = [](const char* text) {
    return std::string(ParseMetricRows(text).status().message());
  };
  EXPECT_EQ(message("{\"stage\":\"a\",\"step\":1}\nx\n"),
            "line 2: not a JSON object");
  EXPECT_EQ(message("{\"stage\":\"a\"}\n"),
            "line 1: without 'stage' and 'step'");
  EXPECT_EQ(message("{\"stage\":\"a\",\"step\":1,\"x\":\"y\"}\n"),
            "line 1: 'x' is not a number");
}

TEST(LoadMetricRowsTest, ReportsAMissingFile) {
  EXPECT_EQ(LoadMetricRows("/nowhere/metrics.jsonl").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(LoadLastMetricRowsTest, ReadsTheEndOfAFileHoweverLong) {
  cox::testing::TempDir dir;
  const std::string path = dir.Join("metrics.jsonl");
  std::string text;
  for (int64_t step = 1; step <= 3000; ++step) {
    text += FormatMetricRow({"ppo", step, {{"loss/policy", 0.5}}}) + "\n";
  }
  ASSERT_OK(WriteFileDurably(Fs::Real(), path, text + "{\"stage\":\"pp"));
  // The file is larger than one block; a torn line is no row.
  for (const size_t lines : {size_t{1}, size_t{10}, size_t{2500}}) {
    ASSERT_OK_AND_ASSIGN(const auto rows, LoadLastMetricRows(path, lines));
    EXPECT_GE(rows.size(), lines);
    EXPECT_EQ(rows.back().step, 3000);
    EXPECT_EQ(rows.front().step, 3001 - static_cast<int64_t>(rows.size()));
  }
  ASSERT_OK_AND_ASSIGN(const auto few, LoadLastMetricRows(path, 10));
  EXPECT_LT(few.size(), 3000u);
  ASSERT_OK_AND_ASSIGN(const auto all, LoadLastMetricRows(path, 5000));
  EXPECT_EQ(all.size(), 3000u);
  ASSERT_OK(MetricsWriter::Open(Fs::Real(), path).status());
  EXPECT_EQ(Fs::Real().ReadAll(path).value_or(""), text);
}

}  // namespace
}  // namespace cox
