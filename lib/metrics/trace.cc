#include "lib/metrics/trace.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using nlohmann::json;

constexpr size_t kBufferBytes = 64 << 10;

std::string Dump(const json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/false,
                    json::error_handler_t::replace);
}

std::string Metadata(std::string_view what, int64_t pid, int64_t tid,
                     std::string_view name) {
  return absl::StrCat("{\"ph\":\"M\",\"name\":\"", std::string(what),
                      "\",\"pid\":", pid, ",\"tid\":", tid,
                      ",\"args\":{\"name\":", Dump(std::string(name)), "}}");
}

// The format counts microseconds; three decimals keep the nanoseconds.
std::string Micros(int64_t ns) {
  return absl::StrFormat("%d.%03d", ns / 1000, ns % 1000);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Open(
    Fs& fs, const std::string& path, int64_t max_spans) {
  COX_ASSIGN_OR_RETURN(auto file, fs.Create(path, /*exclusive=*/false));
  return std::unique_ptr<TraceWriter>(
      new TraceWriter(std::move(file), max_spans));
}

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Resume(
    Fs& fs, const std::string& path, int64_t max_spans) {
  if (!fs.Exists(path)) return Open(fs, path, max_spans);
  COX_ASSIGN_OR_RETURN(const uint64_t size, fs.FileSize(path));
  const uint64_t tail = std::min<uint64_t>(size, 4 * kBufferBytes);
  COX_ASSIGN_OR_RETURN(std::string end, fs.ReadRange(path, size - tail, tail));
  // An event ends with "}" before ",\n" or "\n]"; a torn one is cut off.
  size_t keep = std::string::npos;
  if (end.ends_with("}\n]\n")) {
    keep = end.size() - 3;
  } else if (const size_t at = end.rfind("},\n"); at != std::string::npos) {
    keep = at + 1;
  }
  if (keep == std::string::npos) return Open(fs, path, max_spans);
  COX_RETURN_IF_ERROR(fs.Truncate(path, size - tail + keep));
  COX_ASSIGN_OR_RETURN(auto file, fs.OpenAppend(path));
  std::unique_ptr<TraceWriter> writer(
      new TraceWriter(std::move(file), max_spans));
  writer->buffer_.clear();
  writer->first_ = false;
  return writer;
}

TraceWriter::~TraceWriter() = default;

absl::Status TraceWriter::Write(std::string event) {
  if (closed_) return absl::FailedPreconditionError("trace is closed");
  absl::StrAppend(&buffer_, first_ ? "" : ",\n", event);
  first_ = false;
  return buffer_.size() < kBufferBytes ? absl::OkStatus() : Flush();
}

absl::Status TraceWriter::NameProcess(int64_t pid, std::string_view name) {
  return Write(Metadata("process_name", pid, 0, name));
}

absl::Status TraceWriter::NameThread(int64_t pid, int64_t tid,
                                     std::string_view name) {
  return Write(Metadata("thread_name", pid, tid, name));
}

absl::Status TraceWriter::Add(const TraceSpan& span) {
  if (spans_ >= max_spans_) {
    ++dropped_;
    return absl::OkStatus();
  }
  ++spans_;
  std::string event = absl::StrCat(
      "{\"ph\":\"X\",\"name\":", Dump(span.name),
      ",\"ts\":", Micros(span.start.ns), ",\"dur\":",
      Micros(std::max<int64_t>(0, absl::ToInt64Nanoseconds(span.duration))),
      ",\"pid\":", span.pid, ",\"tid\":", span.tid);
  if (!span.category.empty()) {
    absl::StrAppend(&event, ",\"cat\":", Dump(span.category));
  }
  // JSON has no NaN: nlohmann writes null.
  if (!span.args.empty() || !span.labels.empty()) {
    json args = span.args;
    if (args.is_null()) args = json::object();
    for (const auto& [name, text] : span.labels) args[name] = text;
    absl::StrAppend(&event, ",\"args\":", Dump(args));
  }
  return Write(absl::StrCat(event, "}"));
}

absl::Status TraceWriter::Add(const TraceFlow& flow) {
  if (spans_ >= max_spans_) return absl::OkStatus();  // its span is dropped
  return Write(absl::StrCat("{\"ph\":\"", flow.first ? "s" : "t",
                            "\",\"cat\":\"flow\",\"name\":", Dump(flow.name),
                            ",\"id\":", Dump(flow.id),
                            ",\"ts\":", Micros(flow.at.ns),
                            ",\"pid\":", flow.pid, ",\"tid\":", flow.tid, "}"));
}

absl::Status TraceWriter::Flush() {
  if (buffer_.empty()) return absl::OkStatus();
  // A failed write must not repeat bytes: the buffer goes either way.
  const std::string data = std::exchange(buffer_, "");
  return file_->Append(data);
}

absl::Status TraceWriter::Close() {
  if (closed_) return absl::OkStatus();
  closed_ = true;
  buffer_ += "\n]\n";
  const absl::Status flushed = Flush();
  const absl::Status closed = file_->Close();
  return flushed.ok() ? closed : flushed;
}

}  // namespace cox
