#ifndef COX_LIB_METRICS_TRACE_H_
#define COX_LIB_METRICS_TRACE_H_

// trace.json in Chrome's trace event format (open in ui.perfetto.dev): spans
// of the run's processes and threads on one time axis. The array is valid JSON
// after Close(); viewers also accept the file of a run that was killed.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/status.h"

namespace cox {

struct TraceSpan {
  std::string name;      // "train"
  std::string category;  // "learner"; may be empty
  MonoTime start;
  absl::Duration duration;  // negative counts as 0
  int64_t pid = 0;          // any number that tells roles apart
  int64_t tid = 0;
  std::map<std::string, double> args;  // shown when the span is selected
  std::map<std::string, std::string> labels = {};  // the same, texts
};

// An arrow from one span to the next of the same flow. Each of its events
// belongs to the span that is open at `at` on that thread.
struct TraceFlow {
  bool first = false;  // every flow begins with one of these
  std::string name;
  std::string id;  // "0x..." of the whole flow
  MonoTime at;
  int64_t pid = 0;
  int64_t tid = 0;
};

// Thread-compatible. Buffers up to 64 KiB; spans beyond max_spans are counted
// and dropped, so that a long run cannot fill the disk.
class TraceWriter {
 public:
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Open(
      Fs& fs, const std::string& path, int64_t max_spans = 1000000);
  // Goes on behind the last whole event of a file that an earlier process
  // left, closed or not; a file that is not there is begun.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Resume(
      Fs& fs, const std::string& path, int64_t max_spans = 1000000);
  ~TraceWriter();  // without Close(): buffered spans are lost
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  absl::Status NameProcess(int64_t pid, std::string_view name);
  absl::Status NameThread(int64_t pid, int64_t tid, std::string_view name);
  absl::Status Add(const TraceSpan& span);
  absl::Status Add(const TraceFlow& flow);
  absl::Status Flush();
  absl::Status Close();  // idempotent
  int64_t dropped() const { return dropped_; }

 private:
  TraceWriter(std::unique_ptr<WritableFile> file, int64_t max_spans)
      : file_(std::move(file)), max_spans_(max_spans) {}
  absl::Status Write(std::string event);

  std::unique_ptr<WritableFile> file_;
  const int64_t max_spans_;
  std::string buffer_ = "[\n";
  bool first_ = true;
  bool closed_ = false;
  int64_t spans_ = 0;
  int64_t dropped_ = 0;
};

}  // namespace cox

#endif  // COX_LIB_METRICS_TRACE_H_
