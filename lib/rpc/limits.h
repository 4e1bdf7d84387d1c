#ifndef COX_LIB_RPC_LIMITS_H_
#define COX_LIB_RPC_LIMITS_H_

// The one table of deadlines, retries and sizes on the wire.

#include <cstdint>
#include <span>
#include <string_view>

#include "absl/time/time.h"

namespace cox {

inline constexpr int kMaxMessageBytes = 4 << 20;
inline constexpr uint64_t kChunkBytes = uint64_t{1} << 20;
inline constexpr uint64_t kMaxManifestBytes = uint64_t{1} << 20;
inline constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;  // FetchFile
inline constexpr int kMaxUnitsPerLease = 64;
inline constexpr size_t kMaxTextBytes = size_t{64} << 10;
inline constexpr absl::Duration kMaxLongPoll = absl::Seconds(30);

struct RpcLimit {
  std::string_view method;  // "RunService.Register"
  // Of one call, without the time that a long poll asks to wait and without
  // the time of its bytes (TransferTime).
  absl::Duration deadline;
  // Safe to send again after UNAVAILABLE or DEADLINE_EXCEEDED.
  bool retryable;
};

// Every RPC of cox.v1, in the order of the files in proto/.
std::span<const RpcLimit> RpcLimits();
// REQUIRES: `method` is in the table.
const RpcLimit& LimitOf(std::string_view method);

// What `bytes` may take on top of a deadline: 1 MB/s.
absl::Duration TransferTime(uint64_t bytes);

}  // namespace cox

#endif  // COX_LIB_RPC_LIMITS_H_
