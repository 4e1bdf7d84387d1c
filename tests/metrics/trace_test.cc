#include "lib/metrics/trace.h"

#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using nlohmann::json;

class TraceWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = JoinPath(::testing::TempDir(), "cox_trace.json");
    ASSERT_TRUE(Fs::Real().RemoveAll(path_).ok());
  }
  void TearDown() override { (void)Fs::Real().RemoveAll(path_); }
  json Read() {
    return json::parse(Fs::Real().ReadAll(path_).value(), nullptr,
                       /*allow_exceptions=*/false);
  }
  std::string path_;
};

TEST_F(TraceWriterTest, WritesSpansAndNames) {
  auto trace = TraceWriter::Open(Fs::Real(), path_);
  ASSERT_TRUE(trace.ok());
  ASSERT_TRUE((*trace)->NameProcess(1, "learner-0 \"x\"").ok());
  ASSERT_TRUE((*trace)->NameThread(1, 2, "main").ok());
  TraceSpan span;
  span.name = "train";
  span.category = "learner";
  span.start = {1500};
  span.duration = absl::Microseconds(2);
  span.pid = 1;
  span.tid = 2;
  span.args = {{"step", 3}, {"nan", std::numeric_limits<double>::quiet_NaN()}};
  ASSERT_TRUE((*trace)->Add(span).ok());
  ASSERT_TRUE((*trace)->Close().ok());
  ASSERT_TRUE((*trace)->Close().ok());
  EXPECT_EQ((*trace)->Add(span).code(), absl::StatusCode::kFailedPrecondition);

  const json events = Read();
  ASSERT_TRUE(events.is_array());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0]["name"], "process_name");
  EXPECT_EQ(events[0]["args"]["name"], "learner-0 \"x\"");
  EXPECT_EQ(events[1]["tid"], 2);
  EXPECT_EQ(events[2]["ph"], "X");
  EXPECT_EQ(events[2]["cat"], "learner");
  EXPECT_DOUBLE_EQ(events[2]["ts"].get<double>(), 1.5);  // microseconds
  EXPECT_DOUBLE_EQ(events[2]["dur"].get<double>(), 2.0);
  EXPECT_EQ(events[2]["args"]["step"], 3.0);
  EXPECT_TRUE(events[2]["args"]["nan"].is_null());
}

TEST_F(TraceWriterTest, AnEmptyTraceIsValid) {
  auto trace = TraceWriter::Open(Fs::Real(), path_);
  ASSERT_TRUE(trace.ok());
  ASSERT_TRUE((*trace)->Close().ok());
  EXPECT_EQ(Read(), json::array());
}

TEST_F(TraceWriterTest, DropsSpansBeyondTheLimitAndFlushesAsItGoes) {
  auto trace = TraceWriter::Open(Fs::Real(), path_, /*max_spans=*/5000);
  ASSERT_TRUE(trace.ok());
  TraceSpan span;
  span.name = std::string(40, 'x');
  for (int i = 0; i < 5010; ++i) ASSERT_TRUE((*trace)->Add(span).ok());
  EXPECT_EQ((*trace)->dropped(), 10);
  EXPECT_GT(Fs::Real().FileSize(path_).value(), 100000u);
  ASSERT_TRUE((*trace)->Close().ok());
  EXPECT_EQ(Read().size(), 5000u);
}

}  // namespace
}  // namespace cox
