#ifndef COX_LIB_RPC_WEIGHT_SERVER_H_
#define COX_LIB_RPC_WEIGHT_SERVER_H_

// WeightService over a SnapshotStore: whoever holds a version can serve it.

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
  std::function<void(cox::v1::Chunk*)> on_chunk;
};

// Thread-safe. A stream keeps its snapshot alive, so the store may drop a
// version that is still being sent. `store` must outlive the server.
class WeightServiceImpl final : public cox::v1::WeightService::CallbackService {
 public:
  WeightServiceImpl(const SnapshotStore* store, WeightServiceOptions options);

  grpc::ServerWriteReactor<cox::v1::Chunk>* Fetch(
      grpc::CallbackServerContext* context,
      const cox::v1::FetchRequest* request) override;

 private:
  const SnapshotStore* const store_;
  const WeightServiceOptions options_;
};

}  // namespace cox

#endif  // COX_LIB_RPC_WEIGHT_SERVER_H_
