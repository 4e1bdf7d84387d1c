#ifndef COX_LIB_RPC_CALL_CORE_H_
#define COX_LIB_RPC_CALL_CORE_H_

// What the coordinator's clients share: the channel, the caller's identity,
// deadlines, retries, and registering again after a restart.

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "lib/base/status.h"
#include "lib/base/sync.h"
#include "lib/rpc/proto_convert.h"

namespace cox {

struct CallCoreOptions {
  std::string address;  // see ResolveEndpoint()
  CallerIdentity caller;
  absl::Duration patience;
  absl::Duration max_backoff;
  // Registers this session again; unset = the client never registers. Called
  // without locks; itself a call with `registering` set.
  std::function<absl::Status()> reregister;
};

struct CallShape {
  std::string_view method;  // row of the table of limits
  // Of a long poll and of the bytes, on top of the table's deadline.
  absl::Duration extra;
  bool waits = false;        // StopWaiting() cancels it
  bool once = false;         // no retry whatever the table says
  bool registering = false;  // never registers again by itself
  // NOT_FOUND speaks of what was asked for, not of the session.
  bool not_found_is_answer = false;
  // UNAVAILABLE from a living server means "ask again": returned at once
  // with ErrorReason::kNotReady.
  bool unavailable_is_answer = false;
};

// Thread-safe.
class CallCore {
 public:
  explicit CallCore(CallCoreOptions options);
  CallCore(const CallCore&) = delete;
  CallCore& operator=(const CallCore&) = delete;

  // One attempt of an RPC on `channel`.
  using Attempt =
      std::function<grpc::Status(const std::shared_ptr<grpc::Channel>& channel,
                                 grpc::ClientContext* context)>;
  absl::Status Call(const CallShape& shape, const Attempt& attempt);

  // Writes the identity into a request. Used inside attempts, so that a
  // repeated call carries the newest epoch.
  void FillCaller(cox::v1::Caller* proto) const;
  CallerIdentity caller() const;
  void LearnRunId(const std::string& run_id);
  void LearnEpoch(int64_t epoch);  // keeps the largest
  void SetEpoch(int64_t epoch);
  void SetGeneration(Generation generation);
  void SetLimits(absl::Duration patience, absl::Duration max_backoff);
  void StopWaiting();
  bool stopping() const;

 private:
  absl::StatusOr<std::shared_ptr<grpc::Channel>> GetChannel();
  void DropChannel(const std::shared_ptr<grpc::Channel>& channel);
  absl::Status CallOnce(const CallShape& shape, const Attempt& attempt,
                        bool* server_alive);
  // OK when the session was registered again and the call may be repeated.
  bool Reregistered(const CallShape& shape, const absl::Status& status);
  // False when stopping.
  bool Pause(absl::Duration duration);

  const std::string address_;
  const std::function<absl::Status()> reregister_;
  mutable Mutex mutex_;
  CondVar stop_changed_;
  CallerIdentity caller_ ABSL_GUARDED_BY(mutex_);
  absl::Duration patience_ ABSL_GUARDED_BY(mutex_);
  absl::Duration max_backoff_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<grpc::Channel> channel_ ABSL_GUARDED_BY(mutex_);
  std::set<grpc::ClientContext*> waiting_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace cox

#endif  // COX_LIB_RPC_CALL_CORE_H_
