#ifndef COX_LIB_RPC_WEIGHT_SERVER_H_
#define COX_LIB_RPC_WEIGHT_SERVER_H_

// WeightService over a SnapshotStore: whoever holds a version can serve it.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "cox/v1/weight.grpc.pb.h"
#include "lib/weights/snapshot.h"

namespace cox {

struct WeightServiceOptions {
  // Callers of another run get PERMISSION_DENIED. Empty result = any run (the
  // run id is not known yet). Called from gRPC's threads.
  std::function<std::string()> run_id;
  // Sees each chunk before it is sent and may change it: how tests damage one.
  // Costs a copy of the data.
  std::function<void(cox::v1::Chunk*)> on_chunk;
};

// Thread-safe. A stream keeps its snapshot alive, so the store may drop a
// version that is still being sent. `store` must outlive the server.
class WeightServiceImpl final
    : public cox::v1::WeightService::WithRawCallbackMethod_Fetch<
          cox::v1::WeightService::Service> {
 public:
  WeightServiceImpl(const SnapshotStore* store, WeightServiceOptions options);

  // FetchRequest to a stream of Chunk, both as bytes: data is sent from the
  // arena without a copy (chunk_codec.h).
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Fetch(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* request) override;

  // Of chunks handed to gRPC so far, without their headers.
  uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  const SnapshotStore* const store_;
  const WeightServiceOptions options_;
  std::atomic<uint64_t> bytes_sent_ = 0;
};

}  // namespace cox

#endif  // COX_LIB_RPC_WEIGHT_SERVER_H_
