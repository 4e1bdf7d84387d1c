#include "cli/metric_command.h"

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/exec_sibling.h"
#include "cli/metric_check.h"
#include "lib/base/process.h"
#include "lib/metrics/registry.h"

namespace cox {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "explain: %s\n", std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

int ExplainOnly(const std::string& name) {
  if (name.empty()) {
    for (const MetricInfo& metric : AllMetrics()) {
      std::printf("%-30s %s\n", std::string(metric.name).c_str(),
                  std::string(metric.formula).c_str());
    }
    return kExitDone;
  }
  auto text = ExplainMetric(name);
  if (!text.ok()) {
    return Fail(text.status());
  }
  std::fputs(text->c_str(), stdout);
  return kExitDone;
}

// The rest needs the trainer, hence LibTorch.
int CheckByReplay(const ExplainOptions& options) {
  std::vector<std::string> arguments = {"explain"};
  if (!options.metric.empty()) {
    arguments.push_back(options.metric);
  }
  arguments.insert(arguments.end(), {"--check", options.check});
  if (!options.stage.empty()) {
    arguments.insert(arguments.end(), {"--stage", options.stage});
  }
  if (options.step > 0) {
    arguments.insert(arguments.end(), {"--step", absl::StrCat(options.step)});
  }
  if (options.to > 0) {
    arguments.insert(arguments.end(), {"--to", absl::StrCat(options.to)});
  }
  if (options.ranks > 0) {
    arguments.insert(arguments.end(), {"--ranks", absl::StrCat(options.ranks)});
  }
  arguments.insert(arguments.end(),
                   {"--tolerance", absl::StrCat(options.tolerance)});
  if (options.json) {
    arguments.push_back("--json");
  }
  return ExecSibling("cox-replay", arguments);
}

int CheckMetric(ExplainOptions options) {
  if (!options.metric.empty()) {
    const MetricInfo* metric = FindMetric(options.metric);
    if (metric == nullptr) {
      return Fail(ExplainMetric(options.metric).status());
    }
    options.metric = std::string(metric->name);
    if (!options.json) {
      std::fputs(ExplainMetric(metric->name)->c_str(), stdout);
    }
    if (DependsOnExecution(metric->name)) {
      return Fail(absl::InvalidArgumentError(absl::StrCat(
          options.metric,
          ": measured while the run ran; it cannot be computed again")));
    }
  }
  const absl::StatusOr<RecordedRun> run =
      RecordedRun::Open(Fs::Real(), options.check);
  if (!run.ok()) {
    return Fail(run.status());
  }
  StepRange range;
  if (!options.stage.empty()) {
    const absl::StatusOr<int32_t> stage = run->FindStage(options.stage);
    if (!stage.ok()) {
      return Fail(stage.status());
    }
    range.stage = *stage;
  }
  if (options.step > 0) {
    range.first = options.step;
    range.last = options.to > 0 ? options.to : options.step;
  }
  absl::StatusOr<MetricComparison> comparison =
      MetricComparison::Create(*run, options.metric, options.tolerance);
  if (!comparison.ok()) {
    return Fail(comparison.status());
  }
  if (!options.metric.empty()) {
    absl::Status status = CheckRolloutMetrics(*run, range, &*comparison);
    status.Update(CheckOutputMetrics(*run, range, &*comparison));
    if (!status.ok()) {
      return Fail(status);
    }
  }
  if (comparison->verdicts().empty()) {
    std::fflush(stdout);
    return CheckByReplay(options);
  }
  std::fputs((options.json ? comparison->Json() : comparison->Text()).c_str(),
             stdout);
  return comparison->ok() ? kExitDone : kExitCheckFailed;
}

}  // namespace

int ExplainMetricCommand(const ExplainOptions& options) {
  return options.check.empty() ? ExplainOnly(options.metric)
                               : CheckMetric(options);
}

}  // namespace cox
