#ifndef COX_LIB_METRICS_TRACE_RECORDER_H_
#define COX_LIB_METRICS_TRACE_RECORDER_H_

// What this process did for a unit or a step, in the terms of W3C Trace
// Context: spans of one trace share an id of 128 bits in every process.
//
// The id is a function of the run and of the unit or step, and so is the
// choice of which ones are traced (log.trace): whoever touches a unit knows
// both without being told, and a unit that is computed again joins its trace.
// Between processes the context travels as the metadata "traceparent"
// (lib/rpc/trace_metadata.h), which foreign reward servers can continue.
//
//   TraceRecorder::Process().Enable(config.log().trace(), run_id);
//   TraceScope scope("generate", UnitTrace(unit), unit.ToString());
//   ...                         // calls from here carry this span as parent

#include <atomic>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "lib/base/ids.h"
#include "lib/base/sync.h"

namespace cox {

// Where a span hangs: its trace, and the span above it ("" = none).
struct TraceContext {
  std::string trace_id;  // 32 lower-case hex digits; "" = not traced
  std::string span_id;   // 16
  bool traced() const { return !trace_id.empty(); }
};

// "00-<trace>-<span>-01"; REQUIRES both ids.
std::string FormatTraceparent(const TraceContext& context);
// Not traced when `text` is no traceparent, or one that is not sampled.
TraceContext ParseTraceparent(std::string_view text);

struct RecordedSpan {
  std::string name;  // "generate"
  std::string trace_id;
  std::string span_id;
  std::string parent_id;  // "" = none
  std::string about;      // "s4.12.3", "s4.12": no text of samples, ever
  int64_t start_ns = 0;   // Unix time, so that processes share an axis
  int64_t duration_ns = 0;
};

// A bounded ring of finished spans. Thread-safe. Costs an atomic load while
// it is off.
class TraceRecorder {
 public:
  static constexpr size_t kCapacity = 8192;

  static TraceRecorder& Process();  // of this process
  // `share` of units and steps, 0 to 1.
  void Enable(double share, const std::string& run_id);
  bool enabled() const { return enabled_.load(std::memory_order_relaxed); }
  TraceContext Unit(const UnitId& unit) const;
  TraceContext Step(int32_t stage, int64_t step) const;
  // The oldest span goes when the ring is full.
  void Add(RecordedSpan span);
  std::vector<RecordedSpan> Take(size_t most);
  int64_t dropped() const;

 private:
  TraceContext Of(const std::string& about) const;

  std::atomic<bool> enabled_{false};
  mutable Mutex mutex_;
  double share_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string run_id_ ABSL_GUARDED_BY(mutex_);
  std::deque<RecordedSpan> spans_ ABSL_GUARDED_BY(mutex_);
  int64_t dropped_ ABSL_GUARDED_BY(mutex_) = 0;
};

inline TraceContext UnitTrace(const UnitId& unit) {
  return TraceRecorder::Process().Unit(unit);
}
inline TraceContext StepTrace(int32_t stage, int64_t step) {
  return TraceRecorder::Process().Step(stage, step);
}

int64_t UnixNanos();

// A span that may end on another thread than it began. Movable.
class OpenSpan {
 public:
  OpenSpan() = default;  // not traced
  OpenSpan(std::string_view name, const TraceContext& parent,
           std::string about);
  // What calls made on behalf of this span carry.
  const TraceContext& context() const { return context_; }
  // Records it, once.
  void End();

 private:
  TraceContext context_;
  RecordedSpan span_;
};

// A span whose times are known.
void RecordSpan(std::string_view name, const TraceContext& parent,
                std::string about, int64_t start_ns, int64_t end_ns);

// The span of a block. While it lives, CurrentTrace() of this thread is it.
// Not movable; end them in reverse order.
class TraceScope {
 public:
  TraceScope(std::string_view name, const TraceContext& parent,
             std::string about);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;
  const TraceContext& context() const { return span_.context(); }

 private:
  OpenSpan span_;
  TraceContext before_;
};

// Makes another thread's context this thread's, without a span of its own.
class TraceAdoption {
 public:
  explicit TraceAdoption(const TraceContext& context);
  ~TraceAdoption();
  TraceAdoption(const TraceAdoption&) = delete;
  TraceAdoption& operator=(const TraceAdoption&) = delete;

 private:
  TraceContext before_;
};

const TraceContext& CurrentTrace();

}  // namespace cox

#endif  // COX_LIB_METRICS_TRACE_RECORDER_H_
