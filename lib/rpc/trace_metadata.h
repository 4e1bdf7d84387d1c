#ifndef COX_LIB_RPC_TRACE_METADATA_H_
#define COX_LIB_RPC_TRACE_METADATA_H_

// W3C Trace Context as metadata of calls ("traceparent"), and spans on their
// way to the coordinator, with heartbeats.

#include <vector>

#include "cox/v1/run.pb.h"
#include "grpcpp/client_context.h"
#include "grpcpp/server_context.h"
#include "lib/base/status.h"
#include "lib/metrics/trace_recorder.h"

namespace cox {

// Of one heartbeat.
inline constexpr int kMaxSpansPerBeat = 2000;

// Adds CurrentTrace() of this thread to a call that is about to start.
void AddTraceparent(grpc::ClientContext* context);
// What the caller sent; not traced if nothing, or while tracing is off here.
TraceContext TraceparentOf(const grpc::ServerContextBase& context);

void ToProto(const RecordedSpan& span, cox::v1::TraceSpan* proto);
// INVALID_ARGUMENT: ids that are none, a name that is too long.
absl::StatusOr<RecordedSpan> FromProto(const cox::v1::TraceSpan& proto);

}  // namespace cox

#endif  // COX_LIB_RPC_TRACE_METADATA_H_
