// What people see of a real run: its trace, `cox top`, `cox logs`, and a KL
// coefficient changed on the way.

#include <algorithm>
#include <map>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "lib/base/fs.h"
#include "nlohmann/json.hpp"
#include "tests/coordinator/trace_check.h"
#include "tests/process/run_harness.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::testing::HasSubstr;

// Value of a metric by step, from metrics.jsonl.
std::map<int64_t, double> MetricBySteps(const std::string& run_dir,
                                        const std::string& name) {
  std::map<int64_t, double> values;
  std::istringstream lines(
      Fs::Real().ReadAll(JoinPath(run_dir, "metrics.jsonl")).value_or(""));
  for (std::string line; std::getline(lines, line);) {
    const auto row = nlohmann::json::parse(line, nullptr, false);
    if (row.is_object() && row.contains(name)) {
      values[row.value("step", int64_t{0})] = row[name].get<double>();
    }
  }
  return values;
}

TEST(ObserveTest, TraceTopLogsAndKlCoefficientOfARun) {
  testing::TempDir dir;
  const std::string file = WriteTableTask(dir.path(), "log: {trace: 1}\n");
  const std::string run = dir.Join("run");
  RunningRun running({"run", file, "run_dir=" + run, "ppo.steps=40"},
                     dir.Join("run.log"));
  ASSERT_TRUE(
      Eventually([&] { return MetricBySteps(run, "kl_coef").size() >= 2; }));
  const RunResult set = Cox({"kl-coef", run, "0.125"}, dir.path());
  EXPECT_EQ(set.exit_code, 0) << set.output;
  EXPECT_THAT(set.output, HasSubstr("kl-coef: 0.125 from step"));
  const RunResult top = Cox({"top", run, "--count", "1"}, dir.path());
  EXPECT_THAT(top.output, HasSubstr("alive:   actor 2/2"));
  const RunResult logs = Cox({"logs", run, "learner-0"}, dir.path());
  EXPECT_THAT(logs.output, HasSubstr("learner-0.log"));
  const RunResult ended = running.Wait();
  ASSERT_EQ(ended.exit_code, 0) << ended.output;

  // The coefficient held until one step and changed at the next.
  const auto kl = MetricBySteps(run, "kl_coef");
  EXPECT_EQ(kl.at(1), 0.02);
  EXPECT_EQ(kl.at(40), 0.125);
  // A replay reads it from the ledger.
  const auto changed = std::find_if(
      kl.begin(), kl.end(), [](const auto& e) { return e.second == 0.125; });
  ASSERT_NE(changed, kl.end());
  const RunResult replay = Cox(
      {"replay", run, "--step", std::to_string(changed->first)}, dir.path());
  EXPECT_EQ(replay.exit_code, 0) << replay.output;

  const TraceFacts facts = CheckTrace(JoinPath(run, "trace.json"));
  int whole = 0;
  int steps = 0;
  for (const auto& [trace, names] : facts.names) {
    std::string all;
    for (const std::string& name : names) absl::StrAppend(&all, name, "\n");
    const auto has = [&all](const char* text) {
      return all.find(text) != std::string::npos;
    };
    whole += has(": lease") && has(": generate") && has(": score") &&
                     has(": submit") && has("reward-0: reward") &&
                     has("coordinator: SubmitUnit") && has("learner-0: learn")
                 ? 1
                 : 0;
    steps += has("learner-0: take") && has("learner-0: train") &&
                     has("learner-0: commit") && has("learner-0: publish") &&
                     has("coordinator: ExperienceService.CommitStep") &&
                     has(": broadcast")
                 ? 1
                 : 0;
  }
  // 160 units in 40 steps; the last seconds' spans may be lost with their
  // processes.
  EXPECT_GT(whole, 100);
  EXPECT_GT(steps, 20);
}

}  // namespace
}  // namespace cox
