#include "lib/metrics/trace_recorder.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

TEST(TraceparentTest, RoundTrip) {
  const TraceContext context = {"4bf92f3577b34da6a3ce929d0e0e4736",
                                "00f067aa0ba902b7"};
  // The example of the W3C recommendation.
  const std::string text =
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  EXPECT_EQ(FormatTraceparent(context), text);
  EXPECT_EQ(ParseTraceparent(text).trace_id, context.trace_id);
  EXPECT_EQ(ParseTraceparent(text).span_id, context.span_id);
  // A later version may say more.
  EXPECT_TRUE(ParseTraceparent("01" + text.substr(2) + "-more").traced());
}

TEST(TraceparentTest, Refusals) {
  const std::string good =
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  for (const std::string& bad :
       {std::string(), good.substr(1), good + "-x", good.substr(0, 54),
        "ff" + good.substr(2),
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01" +
            std::string(),
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01" +
            std::string(),
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01" +
            std::string(),
        good.substr(0, 53) + "00"}) {  // not sampled
    EXPECT_FALSE(ParseTraceparent(bad).traced()) << bad;
  }
}

TEST(TraceRecorderTest, OffByDefaultAndSampledByUnit) {
  TraceRecorder recorder;
  const UnitId unit{1, 2, 3};
  EXPECT_FALSE(recorder.Unit(unit).traced());
  recorder.Enable(1, "run");
  EXPECT_EQ(recorder.Unit(unit).trace_id.size(), 32u);
  // Another process knows the same id; another run has another.
  TraceRecorder other;
  other.Enable(1, "run");
  EXPECT_EQ(recorder.Unit(unit).trace_id, other.Unit(unit).trace_id);
  other.Enable(1, "another run");
  EXPECT_NE(recorder.Unit(unit).trace_id, other.Unit(unit).trace_id);
  recorder.Enable(0.25, "run");
  int traced = 0;
  for (int32_t i = 0; i < 4000; ++i) {
    traced += recorder.Unit({0, 1, i}).traced() ? 1 : 0;
  }
  EXPECT_NEAR(traced, 1000, 100);  // standard deviation 27
}

TEST(TraceRecorderTest, TheOldestGoWhenTheRingIsFull) {
  TraceRecorder recorder;
  for (size_t i = 0; i < TraceRecorder::kCapacity + 3; ++i) {
    RecordedSpan span;
    span.start_ns = static_cast<int64_t>(i);
    recorder.Add(span);
  }
  EXPECT_EQ(recorder.dropped(), 3);
  EXPECT_EQ(recorder.Take(1).front().start_ns, 3);
  EXPECT_EQ(recorder.Take(1 << 20).size(), TraceRecorder::kCapacity - 1);
  EXPECT_TRUE(recorder.Take(1).empty());
}

TEST(TraceScopeTest, SpansNestAndOnlyTracedOnesCount) {
  TraceRecorder::Process().Enable(1, "run");
  {
    const TraceScope nothing("idle", TraceContext(), "");
    EXPECT_FALSE(CurrentTrace().traced());
  }
  std::string outer_id;
  {
    const TraceScope outer("score", UnitTrace({0, 1, 0}), "s0.1.0");
    outer_id = outer.context().span_id;
    EXPECT_EQ(CurrentTrace().span_id, outer_id);
    { const TraceScope inner("call", CurrentTrace(), "s0.1.0"); }
    EXPECT_EQ(CurrentTrace().span_id, outer_id);
  }
  EXPECT_FALSE(CurrentTrace().traced());
  const auto spans = TraceRecorder::Process().Take(100);
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(spans[0].name, "call");
  EXPECT_EQ(spans[0].parent_id, outer_id);
  EXPECT_EQ(spans[1].name, "score");
  EXPECT_EQ(spans[1].parent_id, "");
  EXPECT_EQ(spans[0].trace_id, spans[1].trace_id);
  EXPECT_GE(spans[1].duration_ns, spans[0].duration_ns);
  TraceRecorder::Process().Enable(0, "");
}

}  // namespace
}  // namespace cox
