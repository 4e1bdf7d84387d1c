#include "lib/metrics/trace_recorder.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lib/base/hash.h"

namespace cox {
namespace {

constexpr size_t kTraceDigits = 32;
constexpr size_t kSpanDigits = 16;

bool IsHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
}

TraceContext& Current() {
  thread_local TraceContext current;
  return current;
}

// Ids need not be secret, only different: processes differ by their start.
std::string NextSpanId() {
  static const uint64_t start =
      static_cast<uint64_t>(UnixNanos()) ^ reinterpret_cast<uint64_t>(&Current);
  static std::atomic<uint64_t> count{0};
  const uint64_t n = count.fetch_add(1, std::memory_order_relaxed) + 1;
  return absl::StrFormat("%016x", (start ^ (n * 0x9E3779B97F4A7C15ull)) | 1);
}

}  // namespace

int64_t UnixNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string FormatTraceparent(const TraceContext& context) {
  return absl::StrCat("00-", context.trace_id, "-", context.span_id, "-01");
}

TraceContext ParseTraceparent(std::string_view text) {
  // version "00": exactly 55 characters; a later version may have more.
  constexpr size_t kLength = 2 + 1 + kTraceDigits + 1 + kSpanDigits + 1 + 2;
  if (text.size() < kLength || text[2] != '-' || text[35] != '-' ||
      text[52] != '-' || text.substr(0, 2) == "ff" ||
      (text.substr(0, 2) == "00" && text.size() != kLength)) {
    return {};
  }
  const std::string_view trace = text.substr(3, kTraceDigits);
  const std::string_view span = text.substr(36, kSpanDigits);
  const std::string_view flags = text.substr(53, 2);
  const bool sampled = IsHex(flags) && (flags[1] & 1) != 0;
  const auto is_id = [](std::string_view id) {
    return IsHex(id) && id.find_first_not_of('0') != std::string_view::npos;
  };
  if (!sampled || !IsHex(text.substr(0, 2)) || !is_id(trace) || !is_id(span)) {
    return {};
  }
  return {std::string(trace), std::string(span)};
}

TraceRecorder& TraceRecorder::Process() {
  static auto* recorder = new TraceRecorder();  // never destroyed
  return *recorder;
}

void TraceRecorder::Enable(double share, const std::string& run_id) {
  MutexLock lock(&mutex_);
  share_ = share;
  run_id_ = run_id;
  enabled_ = share > 0;
}

TraceContext TraceRecorder::Of(const std::string& about) const {
  if (!enabled()) return {};
  double share = 0;
  std::string text;
  {
    MutexLock lock(&mutex_);
    share = share_;
    text = absl::StrCat(run_id_, "/", about);
  }
  const std::string hash = Sha256Hex(std::string_view(text));
  // 52 bits of the hash that are not in the id choose.
  const uint64_t draw = std::stoull(hash.substr(kTraceDigits, 13), nullptr, 16);
  if (static_cast<double>(draw) >= share * 0x1p52) return {};
  return {hash.substr(0, kTraceDigits), ""};
}

TraceContext TraceRecorder::Unit(const UnitId& unit) const {
  return enabled() ? Of(unit.ToString()) : TraceContext();
}

TraceContext TraceRecorder::Step(int32_t stage, int64_t step) const {
  return enabled() ? Of(absl::StrCat("s", stage, ".", step)) : TraceContext();
}

void TraceRecorder::Add(RecordedSpan span) {
  MutexLock lock(&mutex_);
  if (spans_.size() == kCapacity) {
    spans_.pop_front();
    ++dropped_;
  }
  spans_.push_back(std::move(span));
}

std::vector<RecordedSpan> TraceRecorder::Take(size_t most) {
  MutexLock lock(&mutex_);
  std::vector<RecordedSpan> taken;
  while (!spans_.empty() && taken.size() < most) {
    taken.push_back(std::move(spans_.front()));
    spans_.pop_front();
  }
  return taken;
}

int64_t TraceRecorder::dropped() const {
  MutexLock lock(&mutex_);
  return dropped_;
}

OpenSpan::OpenSpan(std::string_view name, const TraceContext& parent,
                   std::string about) {
  if (!parent.traced()) return;
  span_.name = std::string(name);
  span_.trace_id = parent.trace_id;
  span_.span_id = NextSpanId();
  span_.parent_id = parent.span_id;
  span_.about = std::move(about);
  span_.start_ns = UnixNanos();
  context_ = {span_.trace_id, span_.span_id};
}

void OpenSpan::End() {
  if (span_.trace_id.empty()) return;
  span_.duration_ns = std::max<int64_t>(0, UnixNanos() - span_.start_ns);
  TraceRecorder::Process().Add(std::exchange(span_, RecordedSpan()));
}

void RecordSpan(std::string_view name, const TraceContext& parent,
                std::string about, int64_t start_ns, int64_t end_ns) {
  if (!parent.traced()) return;
  RecordedSpan span;
  span.name = std::string(name);
  span.trace_id = parent.trace_id;
  span.span_id = NextSpanId();
  span.parent_id = parent.span_id;
  span.about = std::move(about);
  span.start_ns = start_ns;
  span.duration_ns = std::max<int64_t>(0, end_ns - start_ns);
  TraceRecorder::Process().Add(std::move(span));
}

TraceScope::TraceScope(std::string_view name, const TraceContext& parent,
                       std::string about)
    : span_(name, parent, std::move(about)) {
  before_ = std::exchange(Current(), span_.context());
}

TraceScope::~TraceScope() {
  Current() = std::move(before_);
  span_.End();
}

TraceAdoption::TraceAdoption(const TraceContext& context)
    : before_(std::exchange(Current(), context)) {}

TraceAdoption::~TraceAdoption() { Current() = std::move(before_); }

const TraceContext& CurrentTrace() { return Current(); }

}  // namespace cox
