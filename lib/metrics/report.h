#ifndef COX_LIB_METRICS_REPORT_H_
#define COX_LIB_METRICS_REPORT_H_

// report.html: one self-contained page about a run. No scripts, no external
// resources, a restrictive Content-Security-Policy; every text is escaped.

#include <string>
#include <utility>
#include <vector>

#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/metrics/jsonl.h"  // MetricRow, LoadMetricRows

namespace cox {

// Which direction is better; the best value of a column is set bold.
enum class Better { kHigher, kLower, kNeither };

// One number of the final evaluation. Rows become a table of systems by
// metrics, both in order of first appearance.
struct EvalCell {
  std::string system;  // "sft", "ppo", "best of 4"
  std::string metric;  // "gold score"
  double value = 0;
  double low = 0;  // 95 % interval; equal to high = none shown
  double high = 0;
  std::string unit;
  int64_t samples = 0;  // 0 = not shown
  Better better = Better::kHigher;
};

// One prompt with the answers of the policies before and after ppo.
struct ReportSample {
  std::string prompt;
  std::string before;
  std::string after;
  // NaN = not shown.
  double before_score = 0;
  double after_score = 0;
};

struct ReportInput {
  std::string title;    // name of the run
  std::string summary;  // one or two sentences; may be empty
  std::vector<std::pair<std::string, std::string>> facts;  // label, value
  std::vector<MetricRow> rows;                             // metrics.jsonl
  std::vector<EvalCell> eval;
  std::string eval_note;  // what the intervals are; may be empty
  std::vector<ReportSample> samples;
  std::string before_label = "Before";  // "sft"
  std::string after_label = "After";    // "ppo"
  std::string config_yaml;              // shown folded; may be empty
};

// Sections without data are left out.
std::string RenderReport(const ReportInput& input);

// Written durably, so that a reader never sees half a page.
absl::Status WriteReport(const ReportInput& input, const std::string& path,
                         Fs& fs = Fs::Real());

}  // namespace cox

#endif  // COX_LIB_METRICS_REPORT_H_
