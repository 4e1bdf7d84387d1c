#include "coordinator/trace_collector.h"

#include <map>
#include <set>

#include "gmock/gmock.h"
#include "lib/rpc/trace_metadata.h"
#include "nlohmann/json.hpp"
#include "tests/coordinator/trace_check.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;
using Spans = google::protobuf::RepeatedPtrField<cox::v1::TraceSpan>;

const char kTrace[] = "0123456789abcdef0123456789abcdef";

cox::v1::TraceSpan Span(const std::string& name, int64_t start_ns,
                        int64_t duration_ns, int id) {
  RecordedSpan span;
  span.name = name;
  span.trace_id = kTrace;
  span.span_id = absl::StrCat("000000000000000", id);
  span.about = "s0.1.2";
  span.start_ns = start_ns;
  span.duration_ns = duration_ns;
  cox::v1::TraceSpan proto;
  ToProto(span, &proto);
  return proto;
}

TEST(TraceCollectorTest, SpansOfAllProcessesFormOneFlow) {
  testing::TempDir dir;
  const std::string path = dir.Join("trace.json");
  auto collector = *TraceCollector::Open(Fs::Real(), path);
  Spans actor, reward, learner;
  *actor.Add() = Span("generate", 1000000, 500000, 1);
  *actor.Add() = Span("submit", 2500000, 100000, 2);
  // Two units at a time: they overlap, so they need two rows.
  *actor.Add() = Span("generate", 1200000, 500000, 3);
  *reward.Add() = Span("reward", 1600000, 200000, 4);
  *learner.Add() = Span("learn", 4000000, 0, 5);
  ASSERT_OK(collector->Add("learner-0", learner));
  ASSERT_OK(collector->Add("actor-0", actor));
  ASSERT_OK(collector->Add("reward-0", reward));
  collector->Close();

  const TraceFacts facts = CheckTrace(path);
  EXPECT_EQ(facts.spans, 5);
  const std::set<std::string> roles = {"actor-0", "reward-0", "learner-0"};
  EXPECT_EQ(facts.processes.at(kTrace), roles);
}

TEST(TraceCollectorTest, GoesOnWhereAnotherIncarnationWasKilled) {
  testing::TempDir dir;
  const std::string path = dir.Join("trace.json");
  Spans spans;
  *spans.Add() = Span("generate", 1000000, 500000, 1);
  *spans.Add() = Span("submit", 2000000, 500000, 2);
  {
    auto first = *TraceCollector::Open(Fs::Real(), path);
    ASSERT_OK(first->Add("actor-0", spans));
    first->Flush();  // no Close(): killed
  }
  // In the middle of an event.
  auto torn = *Fs::Real().OpenAppend(path);
  ASSERT_OK(torn->Append(",\n{\"ph\":\"X\",\"na"));
  ASSERT_OK(torn->Close());
  for (int incarnation = 0; incarnation < 2; ++incarnation) {
    auto next = *TraceCollector::Open(Fs::Real(), path);
    ASSERT_OK(next->Add("actor-0", spans));
    next->Close();
  }
  const nlohmann::json events =
      nlohmann::json::parse(*Fs::Real().ReadAll(path));
  int named = 0;
  for (const auto& event : events) {
    named += event["ph"] == "X" && event["name"] == "submit" ? 1 : 0;
  }
  // The torn tail may cost the event before it.
  EXPECT_GE(named, 2);
  EXPECT_LE(named, 3);
}

TEST(TraceCollectorTest, RefusesWhatIsNoSpan) {
  testing::TempDir dir;
  auto collector = *TraceCollector::Open(Fs::Real(), dir.Join("trace.json"));
  Spans spans;
  *spans.Add() = Span("generate", 1, 1, 1);
  spans.Mutable(0)->set_trace_id("xyz");
  EXPECT_THAT(
      collector->Add("actor-0", spans),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("hex digits")));
  *spans.Mutable(0) = Span(std::string(65, 'x'), 1, 1, 1);
  EXPECT_THAT(collector->Add("actor-0", spans),
              StatusIs(absl::StatusCode::kInvalidArgument));
  spans.Clear();
  for (int i = 0; i <= kMaxSpansPerBeat; ++i) {
    *spans.Add() = Span("x", 1, 1, 1);
  }
  EXPECT_THAT(
      collector->Add("actor-0", spans),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 2000")));
}

}  // namespace
}  // namespace cox
