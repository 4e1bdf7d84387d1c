#ifndef COX_COORDINATOR_TRACE_COLLECTOR_H_
#define COX_COORDINATOR_TRACE_COLLECTOR_H_

// trace.json of the run: the spans that all processes send with their
// heartbeats and the coordinator's own, with an arrow from each span of a unit
// or step to the next.

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cox/v1/run.pb.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/base/sync.h"
#include "lib/metrics/trace.h"
#include "lib/metrics/trace_recorder.h"

namespace cox {

// Thread-safe.
class TraceCollector {
 public:
  // Goes on with the file of an earlier incarnation.
  static absl::StatusOr<std::unique_ptr<TraceCollector>> Open(
      Fs& fs, const std::string& path);

  // Spans of process `name`. INVALID_ARGUMENT: ids that are none, too
  // many spans. Does no I/O.
  absl::Status Add(
      const std::string& name,
      const google::protobuf::RepeatedPtrField<cox::v1::TraceSpan>& spans);
  // Writes what was added, and the spans of this process. Spans of the last
  // seconds wait, because others' heartbeats may bring earlier ones of the same
  // trace.
  void Flush();
  void Close();

 private:
  explicit TraceCollector(std::unique_ptr<TraceWriter> writer)
      : writer_(std::move(writer)) {}
  struct Process {
    int64_t pid = 0;
    std::vector<int64_t> lane_ends;  // Unix ns
  };
  void WriteUntil(int64_t unix_ns) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writing_);
  absl::Status Write(const std::string& name, const RecordedSpan& span)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writing_);

  Mutex mutex_;
  std::vector<std::pair<std::string, RecordedSpan>> added_
      ABSL_GUARDED_BY(mutex_);
  Mutex writing_;  // before mutex_
  std::unique_ptr<TraceWriter> writer_ ABSL_GUARDED_BY(writing_);
  std::vector<std::pair<std::string, RecordedSpan>> waiting_
      ABSL_GUARDED_BY(writing_);  // too new to be written
  std::map<std::string, Process> processes_ ABSL_GUARDED_BY(writing_);
  std::set<std::string> flows_ ABSL_GUARDED_BY(writing_);  // begun, by trace
  bool failed_ ABSL_GUARDED_BY(writing_) = false;
};

}  // namespace cox

#endif  // COX_COORDINATOR_TRACE_COLLECTOR_H_
