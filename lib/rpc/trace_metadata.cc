#include "lib/rpc/trace_metadata.h"

#include <algorithm>
#include <string>

namespace cox {
namespace {

constexpr char kTraceparent[] = "traceparent";
constexpr size_t kMaxName = 64;

bool IsId(const std::string& text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

}  // namespace

void AddTraceparent(grpc::ClientContext* context) {
  if (!CurrentTrace().span_id.empty()) {
    context->AddMetadata(kTraceparent, FormatTraceparent(CurrentTrace()));
  }
}

TraceContext TraceparentOf(const grpc::ServerContextBase& context) {
  if (!TraceRecorder::Process().enabled()) return {};
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kTraceparent);
  if (found == metadata.end()) return {};
  return ParseTraceparent({found->second.data(), found->second.size()});
}

void ToProto(const RecordedSpan& span, cox::v1::TraceSpan* proto) {
  proto->set_name(span.name);
  proto->set_trace_id(span.trace_id);
  proto->set_span_id(span.span_id);
  proto->set_parent_id(span.parent_id);
  proto->set_about(span.about);
  proto->set_start_unix_ns(span.start_ns);
  proto->set_duration_ns(span.duration_ns);
}

absl::StatusOr<RecordedSpan> FromProto(const cox::v1::TraceSpan& proto) {
  if (!IsId(proto.trace_id(), 32) || !IsId(proto.span_id(), 16) ||
      (!proto.parent_id().empty() && !IsId(proto.parent_id(), 16)) ||
      proto.name().empty() || proto.name().size() > kMaxName ||
      proto.about().size() > kMaxName || proto.duration_ns() < 0) {
    return absl::InvalidArgumentError(
        "spans: expected ids of 32 and 16 hex digits, a name and a subject of "
        "at most 64 bytes and a duration of at least 0");
  }
  RecordedSpan span;
  span.name = proto.name();
  span.trace_id = proto.trace_id();
  span.span_id = proto.span_id();
  span.parent_id = proto.parent_id();
  span.about = proto.about();
  span.start_ns = proto.start_unix_ns();
  span.duration_ns = proto.duration_ns();
  return span;
}

}  // namespace cox
