#ifndef COX_LIB_COMM_NCCL_H_
#define COX_LIB_COMM_NCCL_H_

// The learner group over NCCL (docs/gpu.md "Collectives").
//
// Order of sums. NCCL's own order depends on topology and number of ranks. With
// `tree_order` (default) sums have the bits of TreeSum, as with Gloo: level j
// of the tree is an all-reduce in groups of two ranks, and two terms have one
// order only. It costs log2(W) exchanges of the data instead of 2 (W - 1) / W.
// Without it all ranks still end with the same bits, but another number of
// ranks or another machine may give others.
//
// Time. Communicators are non-blocking: no call into NCCL waits for a peer. All
// waiting is done here: event, asynchronous errors of the communicators,
// Abort() and deadline are looked at in turn. Whatever ends a wait early aborts
// all communicators; the group is dead then (collective.h).
//
// Memory. Spans travel in buckets through page-locked buffers: copy in, reduce
// and copy out of different buckets overlap on three streams. After an error
// only those buffers, never a caller's span, may still be written. Device
// buffers given to Start() are the caller's: after an error they hold anything,
// and stay in use until the collective is destroyed.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "lib/base/sync.h"
#include "lib/comm/collective.h"
#include "lib/comm/nccl_api.h"

namespace cox {

struct NcclOptions {
  int rank = 0;
  int world_size = 1;
  // Of rank 0, the same on all ranks: NewNcclId().
  NcclUniqueId id = {};
  // Run and generation. Ranks that bring different ones do not meet.
  std::string group = "";
  int device = -1;  // GPU; -1 = NcclDevice()
  absl::Duration timeout = absl::Seconds(60);
  size_t bucket_bytes = size_t{4} << 20;
  int slots = 3;  // buckets on their way at once
  bool tree_order = true;
  // How long a rank that leaves in order waits for the others to leave too.
  absl::Duration leave_grace = absl::Seconds(5);
  // Once notified, every wait ends the group with CANCELLED, the meeting
  // included. Must outlive the collective; null: only Abort() does.
  const Notification* stop = nullptr;
  std::string nccl_path = "";  // "" = search (nccl_api.h)
  std::string cudart_path = "";
};

// A sum, gather or broadcast of device memory.
struct NcclCall {
  enum class Kind { kAllReduceSum, kReduceScatterSum, kAllGather, kBroadcast };
  Kind kind = Kind::kAllReduceSum;
  // Device memory on the collective's GPU; `in` = `out` is in place. Broadcast
  // and all-reduce use `out` only. Scatter: in = world_size * count elements,
  // used as scratch in tree order. Gather: out = world_size * count elements.
  void* in = nullptr;
  void* out = nullptr;
  size_t count = 0;
  NcclType type = NcclType::kFloat32;
  int root = 0;
  // What was enqueued there before Start() has written the input.
  CudaStream producer = nullptr;
};

// Bytes from one rank to all that are never in one place as a whole: in order,
// a bucket at a time, in the thread of the call.
struct NcclStream {
  uint64_t bytes = 0;
  int root = 0;
  // On the root: writes the bytes from `offset` on.
  std::function<void(uint64_t offset, std::span<std::byte> bucket)> fill;
  // On the others: takes them.
  std::function<void(uint64_t offset, std::span<const std::byte> bucket)> drain;
};

class NcclCollective : public Collective {
 public:
  virtual absl::Status Broadcast(const NcclStream& stream) = 0;
  using Collective::Broadcast;
  // Enqueues `call` behind its producer and returns without waiting for the
  // sum: the engine starts one bucket of gradients as soon as it is there and
  // goes on with its backward pass. All ranks start the same calls in the same
  // order. Returns a ticket.
  virtual absl::StatusOr<int64_t> Start(const NcclCall& call) = 0;
  // Until the call and all before it are done: OK, or what ended the group.
  virtual absl::Status Wait(int64_t ticket) = 0;
  // Makes `consumer` wait on the device; the host goes on. A Wait() must still
  // follow: only it sees errors and deadline.
  virtual absl::Status WaitOnStream(int64_t ticket, CudaStream consumer) = 0;
  virtual int device() const = 0;
  virtual const CudaApi& cuda() const = 0;
};

// GPU of this process among `count`: LOCAL_RANK of the launcher, else `rank`,
// modulo `count`.
int NcclDevice(int rank, int count);

// A new group's id, on rank 0 only; this process serves the meeting until it
// ends. NOT_FOUND as of LoadNcclApi().
absl::StatusOr<NcclUniqueId> NewNcclId(const std::string& nccl_path = "");
// For a rendezvous text: "nccl:" and hexadecimal digits.
std::string NcclIdText(const NcclUniqueId& id);
absl::StatusOr<NcclUniqueId> ParseNcclId(const std::string& text);

// Returns when all ranks have met. INVALID_ARGUMENT: impossible options, or two
// ranks on one GPU; NOT_FOUND: no library, driver or GPU, in one line;
// DEADLINE_EXCEEDED: a rank does not come; ABORTED: one is of another group, or
// the meeting fails otherwise.
absl::StatusOr<std::unique_ptr<NcclCollective>> MakeNccl(
    const NcclOptions& options);

}  // namespace cox

#endif  // COX_LIB_COMM_NCCL_H_
