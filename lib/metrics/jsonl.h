#ifndef COX_LIB_METRICS_JSONL_H_
#define COX_LIB_METRICS_JSONL_H_

// metrics.jsonl: one object per step,
//   {"stage":"ppo","step":3,"lr":0.05,"objective/kl":1.25,"ts":1700000000.5}
// with metrics sorted by name and `ts` (Unix seconds, for people only) last.
// NaN and infinities are the strings "NaN", "Infinity", "-Infinity". A resumed
// run may write a step again: the last line of a step counts.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/status.h"

namespace cox {

struct MetricRow {
  std::string stage;
  int64_t step = 0;
  std::map<std::string, double> metrics;
};

// The line of a row, without "ts" and without its end.
std::string FormatMetricRow(const MetricRow& row);

// Appends to metrics.jsonl. Thread-compatible. Each Append is one write, not
// synced: the file is a view, the ledger is the record.
class MetricsWriter {
 public:
  // Cuts off a last line that a crash tore.
  static absl::StatusOr<std::unique_ptr<MetricsWriter>> Open(
      Fs& fs, const std::string& path, const Clock& clock = Clock::Real());
  // INVALID_ARGUMENT for a metric called stage, step or ts.
  absl::Status Append(std::string_view stage, int64_t step,
                      const std::map<std::string, double>& metrics);
  absl::Status Close();

 private:
  MetricsWriter(std::unique_ptr<WritableFile> file, const Clock& clock)
      : file_(std::move(file)), clock_(clock) {}
  std::unique_ptr<WritableFile> file_;
  const Clock& clock_;
};

// Rows in order of first appearance; of two rows for one step the last one
// counts. A torn last line is ignored. INVALID_ARGUMENT with the line number
// for anything else that is no row.
absl::StatusOr<std::vector<MetricRow>> ParseMetricRows(std::string_view text);
absl::StatusOr<std::vector<MetricRow>> LoadMetricRows(const std::string& path,
                                                      Fs& fs = Fs::Real());
// Of the last `lines` lines only, read from the end of the file.
absl::StatusOr<std::vector<MetricRow>> LoadLastMetricRows(
    const std::string& path, size_t lines, Fs& fs = Fs::Real());

}  // namespace cox

#endif  // COX_LIB_METRICS_JSONL_H_
