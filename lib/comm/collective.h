#ifndef COX_LIB_COMM_COLLECTIVE_H_
#define COX_LIB_COMM_COLLECTIVE_H_

// Collectives of one learner group. All ranks call the same methods in the same
// order. Every call ends within the group's timeout: DEADLINE_EXCEEDED when a
// peer hangs, ABORTED when one is gone or Abort() was called; after either the
// group is dead and the process rejoins with a new generation.
// One thread per instance, except Abort(), which any thread may call.

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/time/time.h"
#include "lib/base/status.h"

namespace cox {

class Collective {
 public:
  virtual ~Collective() = default;
  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  // In place. All ranks end with the same bits, those of TreeSum over the
  // ranks' data in rank order (tree_sum.h).
  virtual absl::Status AllReduceSum(std::span<float> data) = 0;
  virtual absl::Status AllReduceSum(std::span<double> data) = 0;
  // in.size() = world_size * out.size(): rank r gets block r of what
  // AllReduceSum would leave in `in`, bit for bit.
  virtual absl::Status ReduceScatterSum(std::span<const float> in,
                                        std::span<float> out) = 0;
  // From `root` to all, in place.
  virtual absl::Status Broadcast(std::span<std::byte> data, int root) = 0;
  // out.size() = world_size * in.size(), in rank order.
  virtual absl::Status AllGather(std::span<const std::byte> in,
                                 std::span<std::byte> out) = 0;
  virtual absl::Status Barrier() = 0;
  virtual void Abort() = 0;
};

// INVALID_ARGUMENT unless `large` is `world` times `small`, in elements.
absl::Status CheckBlocks(const char* operation, size_t large, size_t small,
                         int world);
// INVALID_ARGUMENT unless `root` is a rank of `world`.
absl::Status CheckRoot(int root, int world);

// World of one: every call is a no-op that succeeds.
std::unique_ptr<Collective> MakeSingleRank();

struct GlooOptions {
  std::string host = "127.0.0.1";  // of rank 0's rendezvous store
  int port = 0;
  // Rank 0 only: a bound, listening socket of `port` that the store takes over,
  // so that a free port can be chosen before the other ranks start. -1: bind.
  int listen_fd = -1;
  int rank = 0;
  int world_size = 1;
  std::string prefix = "";  // contains the generation: stale ranks cannot meet
  std::string interface_address = "127.0.0.1";  // this rank's own address
  absl::Duration timeout = absl::Seconds(60);
};
// lib/comm/gloo.cc (the only file here that includes LibTorch); rank 0 hosts
// the store. Linked only with LibTorch: target cox_comm_gloo. Returns when all
// ranks have met: INVALID_ARGUMENT for impossible options, DEADLINE_EXCEEDED
// when a rank does not come, ABORTED when the rendezvous fails otherwise.
absl::StatusOr<std::unique_ptr<Collective>> MakeGloo(
    const GlooOptions& options);

}  // namespace cox

#endif  // COX_LIB_COMM_COLLECTIVE_H_
