#ifndef COX_TESTS_COORDINATOR_TRACE_CHECK_H_
#define COX_TESTS_COORDINATOR_TRACE_CHECK_H_

// Whether a trace.json is what ui.perfetto.dev and chrome://tracing read.

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "nlohmann/json.hpp"

namespace cox {

struct TraceFacts {
  int spans = 0;
  // By trace id: names of processes, and "process: span".
  std::map<std::string, std::set<std::string>> processes;
  std::map<std::string, std::set<std::string>> names;
};

// Fails the test unless every event has its fields, spans of a row do not
// overlap, and every arrow begins once, before it goes on, inside a span.
inline TraceFacts CheckTrace(const std::string& path) {
  TraceFacts facts;
  const auto text = Fs::Real().ReadAll(path);
  EXPECT_TRUE(text.ok()) << text.status();
  const nlohmann::json events = nlohmann::json::parse(
      text.value_or(""), nullptr, /*allow_exceptions=*/false);
  EXPECT_TRUE(events.is_array()) << path << " is no JSON array";
  if (!events.is_array()) return facts;
  struct Interval {
    double begin;
    double end;
  };
  std::map<int64_t, std::string> process;
  std::map<std::pair<int64_t, int64_t>, std::vector<Interval>> rows;
  std::map<std::string, int> begun;
  for (const auto& event : events) {
    const std::string phase = event.value("ph", "");
    EXPECT_TRUE(event.contains("name") && event.contains("pid") &&
                event.contains("tid"))
        << event;
    const int64_t pid = event.value("pid", int64_t{0});
    const int64_t tid = event.value("tid", int64_t{0});
    if (phase == "M") {
      process[pid] = event["args"].value("name", "");
    } else if (phase == "X") {
      ++facts.spans;
      const double begin = event.at("ts").get<double>();
      const double end = begin + event.at("dur").get<double>();
      rows[{pid, tid}].push_back({begin, end});
      const std::string trace = event["args"].value("trace_id", "");
      EXPECT_EQ(trace.size(), 32u) << event;
      EXPECT_TRUE(process.contains(pid)) << "a process without a name";
      facts.processes[trace].insert(process[pid]);
      facts.names[trace].insert(process[pid] + ": " + event.value("name", ""));
    } else {
      EXPECT_TRUE(phase == "s" || phase == "t") << event;
      const std::string id = event.value("id", "");
      EXPECT_EQ(begun[id] == 0, phase == "s") << event;
      ++begun[id];
      const double at = event.at("ts").get<double>();
      const std::vector<Interval>& row = rows[{pid, tid}];
      EXPECT_TRUE(std::any_of(row.begin(), row.end(),
                              [at](const Interval& span) {
                                return span.begin <= at && at <= span.end;
                              }))
          << "an arrow outside of every span: " << event;
    }
  }
  for (auto& [row, spans] : rows) {
    std::sort(
        spans.begin(), spans.end(),
        [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < spans.size(); ++i) {
      // Microseconds since 1970 in a double have a quarter of one.
      EXPECT_LE(spans[i - 1].end, spans[i].begin + 0.5)
          << "two spans of one row overlap";
    }
  }
  return facts;
}

}  // namespace cox

#endif  // COX_TESTS_COORDINATOR_TRACE_CHECK_H_
