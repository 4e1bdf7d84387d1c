#ifndef COX_LIB_RPC_WEIGHT_FETCHER_H_
#define COX_LIB_RPC_WEIGHT_FETCHER_H_

// Gets one version from whoever serves it. Nothing unverified leaves here.

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "lib/base/status.h"
#include "lib/rpc/proto_convert.h"
#include "lib/weights/snapshot.h"

namespace cox {

struct FetchOptions {
  CallerIdentity caller;
  uint64_t max_bytes = uint64_t{64} << 30;      // refuse a larger arena
  absl::Duration deadline = absl::Minutes(10);  // of the whole fetch
  // Gives up earlier when nobody delivered a byte for this long: the addresses
  // may be those of processes that are gone.
  absl::Duration patience = absl::Seconds(30);
  // A source that delivered this many bad chunks is not asked again.
  int max_bad_chunks = 3;
  // Pauses when a pass over all sources brought nothing. Returns true to give
  // up (shutdown). Default: SleepUnlessShutdown.
  std::function<bool(absl::Duration)> sleep;
};

// Streams chunks from source.addresses in order of preference, resuming by
// offset at the next source when a stream breaks or a chunk is damaged; then
// checks every tensor.
//
// INVALID_ARGUMENT: the manifest is malformed, too large, or does not hash to
// content_hash. DATA_LOSS names the tensor (all sources served wrong bytes) or
// the chunk (all sources are quarantined). UNAVAILABLE / DEADLINE_EXCEEDED:
// nobody serves it in time, with the last source's error. CANCELLED: `sleep`
// said so.
absl::StatusOr<std::shared_ptr<const Snapshot>> FetchSnapshot(
    const VersionSource& source, const FetchOptions& options);

}  // namespace cox

#endif  // COX_LIB_RPC_WEIGHT_FETCHER_H_
