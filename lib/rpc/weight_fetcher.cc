#include "lib/rpc/weight_fetcher.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "cox/v1/weight.grpc.pb.h"
#include "lib/base/backoff.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/chunk_codec.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/status_convert.h"
#include "lib/rpc/trace_metadata.h"

namespace cox {
namespace {

struct Source {
  std::string address;
  int bad_chunks = 0;
  bool quarantined = false;
  bool contributed = false;  // to the assembly in progress
};

// State of one fetch.
class Fetcher {
 public:
  Fetcher(const VersionSource& version, const FetchOptions& options)
      : version_(version),
        options_(options),
        end_(Clock::Real().Now() + options.deadline) {
    for (const std::string& address : version.addresses) {
      sources_.push_back({.address = address});
    }
  }

  absl::StatusOr<std::shared_ptr<const Snapshot>> Run() {
    COX_ASSIGN_OR_RETURN(Manifest manifest,
                         Manifest::FromCanonicalText(version_.manifest));
    if (sources_.empty()) {
      return absl::UnavailableError(absl::StrCat(
          "weights ", version_.content_hash, ": no source is known"));
    }
    while (true) {
      COX_ASSIGN_OR_RETURN(
          assembler_, SnapshotAssembler::Create(manifest, version_.content_hash,
                                                options_.max_bytes));
      COX_RETURN_IF_ERROR(Receive());
      absl::StatusOr<std::shared_ptr<const Snapshot>> snapshot =
          assembler_->Finish();
      if (snapshot.ok() || !absl::IsDataLoss(snapshot.status())) {
        return snapshot;
      }
      // Chunks arrived as sent, and yet a tensor differs: whoever sent them
      // holds something else. Start over without them.
      LogWarning("weights differ from their manifest",
                 {{"error", snapshot.status().ToString()}});
      for (Source& source : sources_) {
        if (source.contributed) source.quarantined = true;
        source.contributed = false;
      }
      if (AllQuarantined()) return snapshot.status();
    }
  }

 private:
  bool AllQuarantined() const {
    return std::all_of(sources_.begin(), sources_.end(),
                       [](const Source& s) { return s.quarantined; });
  }

  // Fills the assembler.
  absl::Status Receive() {
    Backoff backoff(
        {.initial = absl::Milliseconds(100), .maximum = absl::Seconds(2)},
        std::hash<std::string>{}(options_.caller.session));
    absl::Status last = absl::UnavailableError("nothing was tried");
    MonoTime progress = Clock::Real().Now();
    while (!assembler_->complete()) {
      const uint64_t before = assembler_->bytes_received();
      for (Source& source : sources_) {
        if (source.quarantined) continue;
        const absl::Status status = ReceiveFrom(&source);
        if (assembler_->complete()) return absl::OkStatus();
        last =
            status.ok() ? absl::UnavailableError("stream ended early") : status;
        last = Annotate(last, source.address);
        // Who asks for what cannot be served anywhere need not ask elsewhere.
        if (absl::IsInvalidArgument(status) ||
            absl::IsPermissionDenied(status)) {
          return last;
        }
      }
      if (AllQuarantined()) return last;
      if (assembler_->bytes_received() > before) {
        backoff.Reset();
        progress = Clock::Real().Now();
        continue;
      }
      const absl::Duration pause = backoff.Next();
      const MonoTime next = Clock::Real().Now() + pause;
      const std::string what = absl::StrCat(
          "weights ", version_.content_hash, ": ", assembler_->bytes_received(),
          " of ", assembler_->total_bytes(), " bytes; last: ", last.ToString());
      if (next > end_) return absl::DeadlineExceededError(what);
      if (next - progress > options_.patience) {
        return absl::UnavailableError(what);
      }
      if (options_.sleep ? options_.sleep(pause) : SleepUnlessShutdown(pause)) {
        return absl::CancelledError("weights: this process is leaving");
      }
    }
    return absl::OkStatus();
  }

  // One stream from where the assembly stands. Chunks come in order, so what
  // was received is always [0, bytes_received).
  absl::Status ReceiveFrom(Source* source) {
    COX_ASSIGN_OR_RETURN(auto channel, MakeChannel(source->address));
    const uint64_t left =
        assembler_->total_bytes() - assembler_->bytes_received();
    const absl::Duration limit =
        std::min(LimitOf("WeightService.Fetch").deadline + TransferTime(left),
                 std::max(end_ - Clock::Real().Now(), absl::Milliseconds(1)));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMicroseconds(limit));
    AddTraceparent(&context);
    cox::v1::FetchRequest request;
    ToProto(options_.caller, request.mutable_caller());
    request.set_content_hash(version_.content_hash);
    request.set_offset(assembler_->bytes_received());
    // What the generated stub does, but with the chunks as bytes.
    static const grpc::internal::RpcMethod method(
        "/cox.v1.WeightService/Fetch",
        grpc::internal::RpcMethod::SERVER_STREAMING);
    const std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader(
        grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(
            channel.get(), method, &context, request));
    grpc::ByteBuffer chunk;
    absl::Status status;
    while (status.ok() && !assembler_->complete() && reader->Read(&chunk)) {
      status = Accept(chunk);
      if (status.ok()) source->contributed = true;
    }
    if (status.ok() && !assembler_->complete()) {
      return FromGrpc(reader->Finish());
    }
    context.TryCancel();
    static_cast<void>(reader->Finish());
    if (status.ok()) return status;
    LogWarning("bad chunk of weights",
               {{"source", source->address}, {"error", status.ToString()}});
    if (++source->bad_chunks >= options_.max_bad_chunks) {
      source->quarantined = true;
    }
    return status;
  }

  // DATA_LOSS for anything a sound source does not send.
  absl::Status Accept(const grpc::ByteBuffer& buffer) {
    COX_ASSIGN_OR_RETURN(const ChunkView chunk, ChunkView::Parse(buffer));
    if (chunk.offset() != assembler_->bytes_received() || chunk.size() == 0) {
      return absl::DataLossError(absl::StrCat(
          "chunk at ", chunk.offset(), " of ", chunk.size(),
          " bytes: expected one at ", assembler_->bytes_received()));
    }
    const absl::Status status =
        assembler_->Append(chunk.pieces(), chunk.xxh3());
    if (absl::IsInvalidArgument(status)) {
      return absl::DataLossError(
          std::string(status.message().data(), status.message().size()));
    }
    return status;
  }

  const VersionSource& version_;
  const FetchOptions& options_;
  const MonoTime end_;
  std::vector<Source> sources_;
  std::unique_ptr<SnapshotAssembler> assembler_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Snapshot>> FetchSnapshot(
    const VersionSource& source, const FetchOptions& options) {
  return Fetcher(source, options).Run();
}

}  // namespace cox
