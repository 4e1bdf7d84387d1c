#include "lib/rpc/weight_server.h"

#include <algorithm>
#include <utility>

#include "lib/base/failpoint.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"
#include "lib/rpc/server.h"
#include "lib/rpc/status_convert.h"

namespace cox {
namespace {

// Sends [begin, end) of an arena, one chunk in flight. Deletes itself.
class FetchReactor final : public grpc::ServerWriteReactor<cox::v1::Chunk> {
 public:
  FetchReactor(std::shared_ptr<const Snapshot> snapshot, uint64_t begin,
               uint64_t end, const std::function<void(cox::v1::Chunk*)>* hook)
      : snapshot_(std::move(snapshot)), next_(begin), end_(end), hook_(hook) {
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
    const std::span<const std::byte> arena = snapshot_->arena->bytes();
    // MakeChunk cuts at the end of what it is given, so it never sees more
    // than was asked for.
    chunk_ = MakeChunk(next_, {reinterpret_cast<const char*>(arena.data()),
                               static_cast<size_t>(end_)});
    next_ += chunk_.data().size();
    if (*hook_) (*hook_)(&chunk_);
    if (HitFailpoint("weights.chunk") == FailAction::kFlip &&
        !chunk_.data().empty()) {
      (*chunk_.mutable_data())[chunk_.data().size() / 2] ^= 0x10;
    }
    StartWrite(&chunk_);
  }

  const std::shared_ptr<const Snapshot> snapshot_;
  uint64_t next_;
  const uint64_t end_;
  const std::function<void(cox::v1::Chunk*)>* const hook_;
  cox::v1::Chunk chunk_;
};

class RefuseReactor final : public grpc::ServerWriteReactor<cox::v1::Chunk> {
 public:
  explicit RefuseReactor(const absl::Status& status) {
    Finish(ToGrpc(status));
  }
  void OnDone() override { delete this; }
};

}  // namespace

WeightServiceImpl::WeightServiceImpl(const SnapshotStore* store,
                                     WeightServiceOptions options)
    : store_(store), options_(std::move(options)) {}

grpc::ServerWriteReactor<cox::v1::Chunk>* WeightServiceImpl::Fetch(
    grpc::CallbackServerContext* context,
    const cox::v1::FetchRequest* request) {
  const std::string run_id = options_.run_id ? options_.run_id() : "";
  const absl::Status call = CheckCall(*context, request->caller(), run_id);
  if (!call.ok()) return new RefuseReactor(call);
  std::shared_ptr<const Snapshot> snapshot =
      store_->Get(request->content_hash());
  if (snapshot == nullptr) {
    return new RefuseReactor(absl::NotFoundError(
        absl::StrCat("version ", request->content_hash(), " is not held")));
  }
  const uint64_t size = snapshot->arena->bytes().size();
  if (request->offset() > size) {
    return new RefuseReactor(absl::InvalidArgumentError(absl::StrCat(
        "offset: expected at most ", size, ", found ", request->offset())));
  }
  const uint64_t left = size - request->offset();
  const uint64_t length =
      request->length() == 0 ? left : std::min(left, request->length());
  return new FetchReactor(std::move(snapshot), request->offset(),
                          request->offset() + length, &options_.on_chunk);
}

}  // namespace cox
