#include "lib/rpc/weight_server.h"

#include <algorithm>
#include <utility>

#include "lib/base/failpoint.h"
#include "lib/rpc/chunk_codec.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"
#include "lib/rpc/server.h"
#include "lib/rpc/status_convert.h"

namespace cox {
namespace {

using Reactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;

// Sends [begin, end) of an arena, one chunk in flight. Deletes itself.
class FetchReactor final : public Reactor {
 public:
  FetchReactor(std::shared_ptr<const Snapshot> snapshot, uint64_t begin,
               uint64_t end, const std::function<void(cox::v1::Chunk*)>* hook,
               std::atomic<uint64_t>* bytes_sent)
      : snapshot_(std::move(snapshot)),
        next_(begin),
        end_(end),
        hook_(hook),
        bytes_sent_(bytes_sent) {
    Next();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "stream broke"));
      return;
    }
    Next();
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    if (next_ >= end_) {
      Finish(grpc::Status::OK);
      return;
    }
    const uint64_t begin = next_;
    next_ = std::min(end_, begin + kChunkBytes);
    const bool flip = HitFailpoint("weights.chunk") == FailAction::kFlip;
    chunk_ = *hook_ || flip ? Changed(begin, flip)
                            : EncodeChunk(snapshot_, begin, next_);
    *bytes_sent_ += next_ - begin;
    StartWrite(&chunk_);
  }

  // The chunk as a copy that a test or a failpoint damages.
  grpc::ByteBuffer Changed(uint64_t begin, bool flip) {
    const std::span<const std::byte> arena = snapshot_->arena->bytes();
    cox::v1::Chunk chunk =
        MakeChunk(begin, {reinterpret_cast<const char*>(arena.data()),
                          static_cast<size_t>(next_)});
    if (*hook_) (*hook_)(&chunk);
    if (flip && !chunk.data().empty()) {
      (*chunk.mutable_data())[chunk.data().size() / 2] ^= 0x10;
    }
    grpc::ByteBuffer buffer;
    bool own_buffer = false;
    COX_CHECK(grpc::SerializationTraits<cox::v1::Chunk>::Serialize(
                  chunk, &buffer, &own_buffer)
                  .ok());
    return buffer;
  }

  const std::shared_ptr<const Snapshot> snapshot_;
  uint64_t next_;
  const uint64_t end_;
  const std::function<void(cox::v1::Chunk*)>* const hook_;
  std::atomic<uint64_t>* const bytes_sent_;
  grpc::ByteBuffer chunk_;
};

class RefuseReactor final : public Reactor {
 public:
  explicit RefuseReactor(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

WeightServiceImpl::WeightServiceImpl(const SnapshotStore* store,
                                     WeightServiceOptions options)
    : store_(store), options_(std::move(options)) {}

grpc::ServerWriteReactor<grpc::ByteBuffer>* WeightServiceImpl::Fetch(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  cox::v1::FetchRequest request;
  grpc::ByteBuffer copy(*bytes);  // of the reference; parsing consumes it
  if (!grpc::SerializationTraits<cox::v1::FetchRequest>::Deserialize(&copy,
                                                                     &request)
           .ok()) {
    return new RefuseReactor(
        absl::InvalidArgumentError("Fetch: malformed FetchRequest"));
  }
  const std::string run_id = options_.run_id ? options_.run_id() : "";
  const absl::Status call = CheckCall(*context, request.caller(), run_id);
  if (!call.ok()) return new RefuseReactor(call);
  std::shared_ptr<const Snapshot> snapshot =
      store_->Get(request.content_hash());
  if (snapshot == nullptr) {
    return new RefuseReactor(absl::NotFoundError(
        absl::StrCat("version ", request.content_hash(), " is not held")));
  }
  const uint64_t size = snapshot->arena->bytes().size();
  if (request.offset() > size) {
    return new RefuseReactor(absl::InvalidArgumentError(absl::StrCat(
        "offset: expected at most ", size, ", found ", request.offset())));
  }
  const uint64_t left = size - request.offset();
  const uint64_t length =
      request.length() == 0 ? left : std::min(left, request.length());
  return new FetchReactor(std::move(snapshot), request.offset(),
                          request.offset() + length, &options_.on_chunk,
                          &bytes_sent_);
}

}  // namespace cox
