#ifndef COX_LIB_COMM_WEIGHT_GROUP_H_
#define COX_LIB_COMM_WEIGHT_GROUP_H_

// One version of the weights from the learner's rank 0 to the actors that want
// it now, over a communicator that serves this one transfer (docs/gpu.md
// "Weights"). It is never the learners' own, so whatever a member does can
// neither hold a training step up nor break the learner group; the worst it can
// do is to make the others of this transfer fetch over gRPC.
//
// The members bring the manifest with them, and hash what arrives against it
// before anybody sees it.

#include <cstdint>
#include <memory>
#include <string>

#include "lib/comm/nccl.h"
#include "lib/weights/snapshot.h"

namespace cox {

struct WeightGroupOptions {
  NcclUniqueId id = {};  // of the root: NewNcclId()
  int rank = 0;          // 0 = the root, which sends
  int world_size = 2;
  // WeightGroupName(): members that bring different ones do not meet.
  std::string name;
  // Of the meeting, and again of the transfer without its bytes
  // (WeightTransferTime).
  absl::Duration timeout = absl::Seconds(15);
  const Notification* stop = nullptr;  // NcclOptions::stop
  int device = -1;                     // NcclOptions::device
  size_t bucket_bytes = size_t{4} << 20;
};

// Two transfers that may not be mixed up have different names: `serial` counts
// the root's groups.
std::string WeightGroupName(const std::string& run_id, int64_t generation,
                            const std::string& content_hash, int64_t serial);

// What `bytes` may take on top of a deadline: 100 MB/s, far below any fabric
// that this is for.
absl::Duration WeightTransferTime(uint64_t bytes);

// Rank 0. Returns once the members have all bytes, or with what ended the
// group: ABORTED, DEADLINE_EXCEEDED, CANCELLED (`stop`), or as MakeNccl().
absl::Status SendWeights(const WeightGroupOptions& options,
                         const Snapshot& snapshot);

// The other ranks. As SendWeights(), and DATA_LOSS names the tensor whose bytes
// are not those of `manifest`; INVALID_ARGUMENT as SnapshotAssembler::Create().
absl::StatusOr<std::shared_ptr<const Snapshot>> ReceiveWeights(
    const WeightGroupOptions& options, const Manifest& manifest,
    const std::string& content_hash, uint64_t max_bytes);

}  // namespace cox

#endif  // COX_LIB_COMM_WEIGHT_GROUP_H_
