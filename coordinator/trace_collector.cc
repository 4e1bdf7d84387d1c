#include "coordinator/trace_collector.h"

#include <algorithm>
#include <limits>

#include "lib/base/log.h"
#include "lib/rpc/trace_metadata.h"

namespace cox {
namespace {

constexpr size_t kMaxWaiting = 100000;  // spans between two flushes
constexpr size_t kMaxFlows = 1 << 20;
// Longer than the default heartbeat, and than most spans.
constexpr int64_t kHeldBackNs = 5'000'000'000;

}  // namespace

absl::StatusOr<std::unique_ptr<TraceCollector>> TraceCollector::Open(
    Fs& fs, const std::string& path) {
  COX_ASSIGN_OR_RETURN(std::unique_ptr<TraceWriter> writer,
                       TraceWriter::Resume(fs, path));
  return std::unique_ptr<TraceCollector>(new TraceCollector(std::move(writer)));
}

absl::Status TraceCollector::Add(
    const std::string& name,
    const google::protobuf::RepeatedPtrField<cox::v1::TraceSpan>& spans) {
  if (spans.size() > kMaxSpansPerBeat) {
    return absl::InvalidArgumentError(
        absl::StrCat("spans: at most ", kMaxSpansPerBeat, " expected, found ",
                     spans.size()));
  }
  std::vector<std::pair<std::string, RecordedSpan>> read;
  for (const cox::v1::TraceSpan& proto : spans) {
    COX_ASSIGN_OR_RETURN(RecordedSpan span, FromProto(proto));
    read.emplace_back(name, std::move(span));
  }
  MutexLock lock(&mutex_);
  if (added_.size() < kMaxWaiting) {
    added_.insert(added_.end(), read.begin(), read.end());
  }
  return absl::OkStatus();
}

void TraceCollector::Flush() {
  MutexLock writing(&writing_);
  WriteUntil(UnixNanos() - kHeldBackNs);
}

void TraceCollector::WriteUntil(int64_t unix_ns) {
  std::vector<std::pair<std::string, RecordedSpan>> spans =
      std::exchange(waiting_, {});
  {
    MutexLock lock(&mutex_);
    spans.insert(spans.end(), added_.begin(), added_.end());
    added_.clear();
  }
  for (RecordedSpan& span :
       TraceRecorder::Process().Take(TraceRecorder::kCapacity)) {
    spans.emplace_back("coordinator", std::move(span));
  }
  if (spans.empty() || failed_) return;
  std::stable_sort(spans.begin(), spans.end(),
                   [](const auto& a, const auto& b) {
                     return a.second.start_ns < b.second.start_ns;
                   });
  absl::Status status;
  for (auto& [name, span] : spans) {
    if (span.start_ns < unix_ns) {
      status.Update(Write(name, span));
    } else {
      waiting_.emplace_back(name, std::move(span));
    }
  }
  status.Update(writer_->Flush());
  if (!status.ok()) {
    // A trace is worth nothing that the run would have to stop for.
    failed_ = true;
    LogWarning("trace.json is not written any more",
               {{"error", status.ToString()}});
  }
}

absl::Status TraceCollector::Write(const std::string& name,
                                   const RecordedSpan& span) {
  auto [found, is_new] = processes_.try_emplace(name);
  Process& process = found->second;
  if (is_new) {
    process.pid = static_cast<int64_t>(processes_.size());
    COX_RETURN_IF_ERROR(writer_->NameProcess(process.pid, name));
  }
  // Spans of one row may not overlap, and a process works on several units at
  // a time: each goes to the first row that is free at its start.
  size_t lane = 0;
  while (lane < process.lane_ends.size() &&
         process.lane_ends[lane] > span.start_ns) {
    ++lane;
  }
  if (lane == process.lane_ends.size()) process.lane_ends.push_back(0);
  // Nothing to bind an arrow to in a span of no length.
  const int64_t duration = std::max<int64_t>(span.duration_ns, 1000);
  process.lane_ends[lane] = span.start_ns + duration;
  TraceSpan out;
  out.name = span.name;
  out.start = {span.start_ns};
  out.duration = absl::Nanoseconds(duration);
  out.pid = process.pid;
  out.tid = static_cast<int64_t>(lane) + 1;
  out.labels = {{"trace_id", span.trace_id}, {"span_id", span.span_id}};
  if (!span.parent_id.empty()) out.labels["parent_id"] = span.parent_id;
  if (!span.about.empty()) out.labels["about"] = span.about;
  COX_RETURN_IF_ERROR(writer_->Add(out));
  TraceFlow flow;
  flow.first = flows_.insert(span.trace_id).second;
  if (flows_.size() > kMaxFlows) flows_.clear();
  flow.name = "unit or step";
  flow.id = "0x" + span.trace_id.substr(0, 16);
  flow.at = {span.start_ns + duration / 2};
  flow.pid = out.pid;
  flow.tid = out.tid;
  return writer_->Add(flow);
}

void TraceCollector::Close() {
  MutexLock writing(&writing_);
  WriteUntil(std::numeric_limits<int64_t>::max());
  if (const absl::Status closed = writer_->Close(); !closed.ok()) {
    LogWarning("trace.json", {{"error", closed.ToString()}});
  }
}

}  // namespace cox
