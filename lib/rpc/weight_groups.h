#ifndef COX_LIB_RPC_WEIGHT_GROUPS_H_
#define COX_LIB_RPC_WEIGHT_GROUPS_H_

// The two sides of roles.weight_transport nccl (docs/gpu.md "Weights"): the
// publisher gathers those who want a version now and sends it to them over
// NCCL; the others ask to be in and receive. WeightService (weight_server.h)
// stays beside it, for every version and for whoever has no luck here.

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cox/v1/weight.grpc.pb.h"
#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"
#include "lib/comm/weight_group_book.h"
#include "lib/rpc/proto_convert.h"
#include "lib/weights/snapshot.h"

namespace cox {

struct WeightGroupsOptions {
  std::string run_id;
  int64_t generation = 0;  // of the learner group that publishes
  absl::Duration timeout = absl::Seconds(15);  // WeightGroupOptions::timeout
  // From the first member of a group until it closes at the latest.
  absl::Duration window = absl::Milliseconds(250);
};

// Thread-safe. Groups are sent one after the other in a thread of its own,
// with communicators of their own; who trains never waits for it. A group that
// fails costs its members `timeout` at most; after two in a row none is formed
// for a while (twice `timeout`, then ever longer), so that a fabric that does
// not work is tried rarely.
class WeightGroups final : public cox::v1::WeightGroupService::CallbackService {
 public:
  // `store` has the versions and must outlive this, this the server.
  explicit WeightGroups(const SnapshotStore* store) : store_(store) {}
  ~WeightGroups() override { Close(); }

  // Joins are refused before Open(), which is called once, and after Close(),
  // which ends the group in progress and returns when nothing of this is left.
  void Open(WeightGroupsOptions options);
  void Close();

  grpc::ServerUnaryReactor* Join(
      grpc::CallbackServerContext* context,
      const cox::v1::JoinWeightGroupRequest* request,
      cox::v1::JoinWeightGroupResponse* response) override;

  uint64_t groups_sent() const { return sent_; }
  uint64_t groups_failed() const { return failed_; }

 private:
  class Call;

  absl::Status Admit(const grpc::CallbackServerContext& context,
                     const cox::v1::JoinWeightGroupRequest& request);
  void Cancelled(uint64_t member);
  void Work();
  void Form(const WeightGroupBook::Group& group, std::vector<Call*> members);
  void RefuseWaiting(const absl::Status& status);
  absl::Duration PauseAfterFailure();

  const SnapshotStore* const store_;
  Notification stop_;
  WeightGroupsOptions options_;  // constant after Open()

  Mutex mutex_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_member_ ABSL_GUARDED_BY(mutex_) = 1;
  std::unique_ptr<WeightGroupBook> book_ ABSL_GUARDED_BY(mutex_);
  // Those in the book. Whoever takes one out of here ends it.
  std::map<uint64_t, Call*> waiting_ ABSL_GUARDED_BY(mutex_);
  MonoTime paused_until_ ABSL_GUARDED_BY(mutex_);
  int failures_in_a_row_ ABSL_GUARDED_BY(mutex_) = 0;

  int64_t serial_ = 0;  // the worker's
  std::atomic<uint64_t> sent_{0};
  std::atomic<uint64_t> failed_{0};
  Thread worker_;
};

struct GroupFetchOptions {
  CallerIdentity caller;
  uint64_t max_bytes = uint64_t{64} << 30;     // refuse a larger arena
  absl::Duration timeout = absl::Seconds(15);  // WeightGroupOptions::timeout
  const Notification* stop = nullptr;          // ends every wait: CANCELLED
};

// Asks source.group for a place and receives the version: verified like what
// FetchSnapshot() returns. Any error means: fetch over gRPC. UNAVAILABLE: the
// publisher forms no group now or is gone; FAILED_PRECONDITION: another
// generation publishes; DEADLINE_EXCEEDED: no group in time; else as
// ReceiveWeights().
absl::StatusOr<std::shared_ptr<const Snapshot>> FetchOverGroup(
    const VersionSource& source, const GroupFetchOptions& options);

}  // namespace cox

#endif  // COX_LIB_RPC_WEIGHT_GROUPS_H_
