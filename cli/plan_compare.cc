#include "cli/plan_compare.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

// What a stage's lines of metrics.jsonl say.
struct StageLines {
  std::vector<double> seconds;  // timing_s/step
  std::vector<double> ends;     // when it was committed
  std::vector<double> answers;  // rollout/length
};

// Between two commits is all of a step, its commit included. First and last
// left out where others remain.
double StepSeconds(const StageLines& lines) {
  std::vector<double> between;
  for (size_t i = 1; i + 1 < lines.ends.size(); ++i) {
    between.push_back(lines.ends[i] - lines.ends[i - 1]);
  }
  return Median(between.empty() ? lines.seconds : between);
}

std::string Line(const std::string& what, double predicted, double measured,
                 const char* unit) {
  return absl::StrFormat("%-22s %10.3f %s %10.3f %s %7.2f\n", what, predicted,
                         unit, measured, unit,
                         measured > 0 ? predicted / measured : 0);
}

}  // namespace

absl::StatusOr<MeasuredRun> ReadMeasuredRun(Fs& fs,
                                            const std::string& run_dir) {
  const std::string path = JoinPath(run_dir, "metrics.jsonl");
  COX_ASSIGN_OR_RETURN(const std::string metrics, fs.ReadAll(path));
  std::map<std::string, StageLines> stages;
  std::istringstream lines(metrics);
  for (std::string line; std::getline(lines, line);) {
    const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    // The last line of a run that was killed; stages without learner steps.
    if (!row.is_object() || !row.contains("timing_s/step")) continue;
    StageLines& stage = stages[row.value("stage", "")];
    stage.seconds.push_back(row.value("timing_s/step", 0.0));
    stage.ends.push_back(row.value("ts", 0.0));
    stage.answers.push_back(row.value("rollout/length", 0.0));
  }
  if (stages.empty()) {
    return absl::DataLossError(absl::StrCat(path, ": no step's time"));
  }
  MeasuredRun run;
  for (const auto& [name, stage] : stages) {
    run.stages[name] = {StepSeconds(stage),
                        static_cast<int64_t>(stage.ends.size()),
                        Median(stage.answers)};
  }
  const absl::StatusOr<std::string> usage =
      fs.ReadAll(JoinPath(run_dir, "usage.json"));
  const Json json = Json::parse(usage.value_or(""), nullptr,
                                /*allow_exceptions=*/false);
  if (json.is_object()) {
    run.peak_private_bytes = json.value("peak_private_bytes", 0.0);
    const Json processes = json.value("processes", Json::object());
    for (auto it = processes.begin(); it != processes.end(); ++it) {
      run.private_bytes[it.key()] = it.value().value("private_bytes", 0.0);
    }
  }
  return run;
}

std::string ComparisonTable(const RunEstimate& run, const RunSizes& sizes,
                            const ClusterSpec& cluster,
                            const MeasuredRun& measured) {
  std::string table = absl::StrFormat("%-22s %12s %12s %8s\n", "", "PREDICTED",
                                      "MEASURED", "RATIO");
  std::map<std::string, double> largest;
  double together = 0;
  for (const StageEstimate& stage : run.stages) {
    double all = 0;
    for (const RoleEstimate& role : stage.roles) {
      // `cox run` is not among those that it watches.
      if (role.role != "run") all += role.all_memory_bytes;
      largest[role.role] = std::max(largest[role.role], role.memory_bytes);
    }
    together = std::max(together, all);
    const auto found = measured.stages.find(stage.stage);
    if (found == measured.stages.end()) continue;
    absl::StrAppend(&table, Line(absl::StrCat(stage.stage, ", step"),
                                 stage.step_s, found->second.step_s, "s "));
    if (found->second.answer_tokens > 0) {
      absl::StrAppend(&table, Line("answers", sizes.answer_tokens,
                                   found->second.answer_tokens, "tk"));
    }
  }
  if (measured.private_bytes.empty()) {
    return absl::StrCat(table, "memory: the run directory has no usage.json\n");
  }
  for (const auto& [name, bytes] : measured.private_bytes) {
    const std::string role = name.substr(0, name.find('-'));
    const auto own = cluster.role_private.find(name);
    const auto other = cluster.role_private.find(role);
    const double predicted = own != cluster.role_private.end() ? own->second
                             : other != cluster.role_private.end()
                                 ? other->second
                                 : largest[role];
    absl::StrAppend(&table, Line(absl::StrCat(name, ", private"),
                                 predicted / 1e6, bytes / 1e6, "MB"));
  }
  absl::StrAppend(&table, Line("all, private", together / 1e6,
                               measured.peak_private_bytes / 1e6, "MB"));
  return table;
}

}  // namespace cox
