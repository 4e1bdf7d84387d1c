#ifndef COX_LIB_COMM_NCCL_GROUP_H_
#define COX_LIB_COMM_NCCL_GROUP_H_

// The communicators of one NcclCollective, and all waiting on them. Internal to
// lib/comm. One thread, except Abort().
//
// Errors: the first one aborts every communicator and is what all later calls
// return. A peer that is gone, CUDA and network errors are ABORTED;
// DEADLINE_EXCEEDED; a wrong use of NCCL is INTERNAL, while connecting
// INVALID_ARGUMENT.

#include <memory>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/comm/nccl_api.h"

namespace cox {

class NcclGroup {
 public:
  // `stop`: NcclOptions::stop.
  NcclGroup(const NcclApi& nccl, const CudaApi& cuda, int rank, int world_size,
            const Notification* stop = nullptr);
  ~NcclGroup();  // aborts what was not closed
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  // Meets the other ranks. With `tree_order` the levels of the tree get
  // communicators of their own.
  absl::Status Connect(const NcclUniqueId& id, bool tree_order,
                       MonoTime deadline);

  // These return once NCCL has enqueued the operation on `stream`.
  // In place.
  absl::Status AllReduceSum(void* data, size_t count, NcclType type,
                            CudaStream stream, MonoTime deadline);
  // `in`: world_size * count elements; in tree order it is overwritten.
  absl::Status ReduceScatterSum(void* in, void* out, size_t count,
                                NcclType type, CudaStream stream,
                                MonoTime deadline);
  absl::Status AllGather(const void* in, void* out, size_t count, NcclType type,
                         CudaStream stream, MonoTime deadline);
  absl::Status Broadcast(void* data, size_t count, NcclType type, int root,
                         CudaStream stream, MonoTime deadline);

  // Until `event` has happened.
  absl::Status AwaitEvent(const char* operation, CudaEvent event,
                          MonoTime deadline);
  // A CUDA call's result; an error ends the group.
  absl::Status Checked(const char* operation, CudaResult result);
  // Ends the group; returns what ended it first.
  absl::Status Die(const absl::Status& why);
  absl::Status status() const;
  // Leaves in order: waits, up to `deadline`, until all ranks do.
  void Close(MonoTime deadline);
  void Abort();

 private:
  template <typename Call>
  absl::Status Issue(const char* operation, size_t comm, MonoTime deadline,
                     Call call);
  absl::Status Settle(const char* operation, NcclComm* comm, NcclResult result,
                      MonoTime deadline);
  absl::Status AddLevel(int color, MonoTime deadline);
  // Ends the group when the deadline has passed or `stop_` says so.
  absl::Status Patience(const char* operation, MonoTime deadline);
  absl::Status ErrorOf(const char* operation, NcclResult result,
                       NcclComm* comm) const;

  const NcclApi nccl_;
  const CudaApi cuda_;
  const int rank_;
  const int world_size_;
  const Notification* const stop_;
  bool connected_ = false;
  bool tree_order_ = false;
  std::vector<std::unique_ptr<NcclComm*>> split_results_;
  mutable Mutex mutex_;
  absl::Status dead_ ABSL_GUARDED_BY(mutex_);
  // The whole group, then the levels of the tree from its leaves; nullptr where
  // this rank takes no part.
  std::vector<NcclComm*> comms_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cox

#endif  // COX_LIB_COMM_NCCL_GROUP_H_
