#ifndef COX_REWARD_ENGINE_DRIVER_H_
#define COX_REWARD_ENGINE_DRIVER_H_

// The thread that owns a reward replica's engines. Everything that touches a
// model runs here, one thing at a time, in the order of RequestQueue.

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "lib/base/sync.h"
#include "lib/base/thread.h"
#include "lib/engine/engine.h"
#include "reward/request_queue.h"

namespace cox {

// Thread-safe.
class EngineDriver {
 public:
  // Called in the driver's thread, once per slot at its first load.
  using EngineFactory =
      std::function<absl::StatusOr<std::unique_ptr<ScoreEngine>>()>;
  // Runs in the driver's thread, exactly once. OK: `engine` holds the weights
  // named (null when none were). Not OK: refused; `engine` is null. Must not
  // call back into the driver.
  using Job =
      std::function<void(const absl::Status& verdict, ScoreEngine* engine)>;

  EngineDriver(EngineFactory factory, size_t queue_capacity);
  ~EngineDriver();  // Close()
  EngineDriver(const EngineDriver&) = delete;
  EngineDriver& operator=(const EngineDriver&) = delete;

  // RESOURCE_EXHAUSTED (full) or UNAVAILABLE (closed): `job` is not called.
  absl::Status Submit(ModelSlot slot, std::string hash, absl::Duration timeout,
                      Job job);
  // Replaces the slot's weights between two jobs and waits for it. On error
  // the slot holds nothing. UNAVAILABLE when closed.
  absl::Status Load(ModelSlot slot, std::shared_ptr<const Snapshot> snapshot);
  // Content hash that the slot holds; "" = none.
  std::string Held(ModelSlot slot) const;
  size_t queued() const;
  // Refuses what waits with UNAVAILABLE and joins the thread. Idempotent.
  void Close();

 private:
  struct LoadRequest {
    ModelSlot slot;
    std::shared_ptr<const Snapshot> snapshot;
    absl::Status result;
    Notification done;
  };

  struct PendingJob {
    ModelSlot slot = ModelSlot::kReward;
    bool needs_model = false;
    Job run;
  };
  // What the driver does next; all empty = look again.
  struct Work {
    std::shared_ptr<LoadRequest> load;
    std::map<uint64_t, PendingJob> refused;  // closed: the end
    bool closed = false;
    PendingJob job;  // with verdict
    absl::Status verdict;
  };

  void Loop();
  Work WaitForWork();
  absl::Status LoadNow(ModelSlot slot,
                       std::shared_ptr<const Snapshot> snapshot);

  const EngineFactory factory_;
  std::map<ModelSlot, std::unique_ptr<ScoreEngine>> engines_;  // driver only

  mutable Mutex mutex_;
  CondVar work_;
  RequestQueue queue_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, PendingJob> jobs_ ABSL_GUARDED_BY(mutex_);
  std::map<ModelSlot, std::string> held_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<LoadRequest> load_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;  // wakes the driver
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  Mutex load_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);  // one Load at a time
  Thread thread_;
};

}  // namespace cox

#endif  // COX_REWARD_ENGINE_DRIVER_H_
