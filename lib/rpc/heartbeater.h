#ifndef COX_LIB_RPC_HEARTBEATER_H_
#define COX_LIB_RPC_HEARTBEATER_H_

// Tells the coordinator every limits.heartbeat_s that this process lives, what
// it does, since when, and whom it waits for.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"
#include "lib/rpc/coordinator_client.h"

namespace cox {

// Owns one thread. Thread-safe. `client` must outlive it.
class Heartbeater {
 public:
  // `on_stop`, if set, is called once from the heartbeat's thread, without
  // locks, when the coordinator says: finish and leave.
  Heartbeater(CoordinatorClient* client, absl::Duration interval,
              std::function<void()> on_stop = nullptr);
  ~Heartbeater();  // stops; blocks for at most one heartbeat's deadline
  Heartbeater(const Heartbeater&) = delete;
  Heartbeater& operator=(const Heartbeater&) = delete;

  // "generating", "waiting for a unit", ...; restarts the state's time.
  void SetState(std::string state, std::string waiting_for = "");
  // Content hashes that this process can serve.
  void SetHeld(std::vector<std::string> content_hashes);
  // The coordinator said: finish and leave.
  bool stop_requested() const;

 private:
  void Loop();

  CoordinatorClient* const client_;
  const absl::Duration interval_;
  const std::function<void()> on_stop_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::string state_ ABSL_GUARDED_BY(mutex_) = "starting";
  std::string waiting_for_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> held_ ABSL_GUARDED_BY(mutex_);
  MonoTime since_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_requested_ ABSL_GUARDED_BY(mutex_) = false;
  Thread thread_;
};

// Resident memory of this process in bytes; 0 when unknown.
uint64_t ResidentBytes();

}  // namespace cox

#endif  // COX_LIB_RPC_HEARTBEATER_H_
