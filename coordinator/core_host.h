#ifndef COX_COORDINATOR_CORE_HOST_H_
#define COX_COORDINATOR_CORE_HOST_H_

// The thread around the core. It takes events from a bounded queue, at most
// 128 in a turn, appends and syncs the payloads among them, lets the core
// decide, commits all rows of the turn in one synced transaction, and only
// then sends the replies (rules 3 and 4). Turns are as long as a commit takes:
// whatever arrives meanwhile forms the next turn.
//
//   handler threads --Post--> [queue] --> core thread --Reply--> handlers
//                                            |  \-- effects --> EffectHandler
//                                         ledger, segments
//
// A failed sync, append or commit ends it (rule 5): fatal() says why, every
// reply from then on carries UNAVAILABLE, and the process must exit.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "coordinator/core.h"
#include "coordinator/segments.h"
#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"

namespace cox {

// Called on the core thread, after the rows that led to the effect are
// durable. May block on files, may call the core.
class EffectHandler {
 public:
  virtual ~EffectHandler() = default;
  virtual void OnEffect(CoordinatorCore& core, const Effect& effect) = 0;
  virtual void OnTick(CoordinatorCore& core) = 0;
};

struct CoreHostOptions {
  const Clock* clock = &Clock::Real();
  absl::Duration tick = absl::Milliseconds(100);
  size_t max_queue = 8192;
};

// Thread-safe unless a method says "core thread".
class CoreHost {
 public:
  using Task = std::function<void()>;
  // Gets OK after the commit, otherwise why there was none.
  using Reply = std::function<void(const absl::Status& committed)>;

  CoreHost(CoreHostOptions options, std::unique_ptr<CoordinatorCore> core,
           std::unique_ptr<LedgerStore> ledger,
           std::unique_ptr<SegmentStore> segments);
  ~CoreHost();  // Stop()
  CoreHost(const CoreHost&) = delete;
  CoreHost& operator=(const CoreHost&) = delete;

  // `handler` must outlive the host's threads.
  void Start(EffectHandler* handler);
  // Parked callers get their answer for "time is over", later ones at once.
  void StopParking();
  // Ends both threads after the queue is empty; closes the ledger. Idempotent.
  void Stop();
  // False once StopParking or Stop was called.
  bool parking() const;
  // OK while it runs.
  absl::Status fatal() const;

  // Runs `task` on the core thread. False: the queue is full or stopped, and
  // `task` will not run.
  bool Post(Task task);
  // Stores the payload if the core wants it, then `reply` with the outcome,
  // after the commit.
  bool PostSubmit(
      SubmitEvent event, std::string payload,
      std::function<void(const absl::StatusOr<SubmitResult>&)> reply);
  // On the thread for reading files.
  bool PostIo(Task task);

  // --- Core thread
  CoordinatorCore& core() { return *core_; }
  void AfterCommit(Reply reply) { replies_.push_back(std::move(reply)); }
  // `attempt(expired)` runs now, whenever the core changed, and once with
  // true after `wait`; it returns true when it has answered.
  void Park(absl::Duration wait, std::function<bool(bool expired)> attempt);

  // Any thread.
  const SegmentStore& segments() const { return *segments_; }

 private:
  struct Item {
    Task task;
    std::optional<SubmitEvent> submit;
    std::string payload;
    std::function<void(const absl::StatusOr<SubmitResult>&)> reply;
  };
  struct Parked {
    MonoTime deadline;
    std::function<bool(bool)> attempt;
  };

  void Loop();
  void IoLoop();
  std::vector<Item> NextItems();
  absl::Status Turn(std::vector<Item> items);
  absl::Status StorePayloads(std::vector<Item>& items);
  absl::Status CommitRows();
  void RunParked();
  void SendReplies(const absl::Status& status);
  void Die(const absl::Status& status);
  bool Enqueue(Item item);

  const CoreHostOptions options_;
  std::unique_ptr<CoordinatorCore> core_;
  std::unique_ptr<LedgerStore> ledger_;
  std::unique_ptr<SegmentStore> segments_;
  EffectHandler* handler_ = nullptr;

  // Core thread only
  std::vector<Reply> replies_;
  std::vector<Parked> parked_;
  int64_t seen_changes_ = -1;
  MonoTime next_tick_;
  MonoTime last_turn_;

  mutable Mutex mutex_;
  CondVar wake_;
  CondVar io_wake_;
  std::deque<Item> queue_ ABSL_GUARDED_BY(mutex_);
  std::deque<Task> io_queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool parking_ ABSL_GUARDED_BY(mutex_) = true;
  absl::Status fatal_ ABSL_GUARDED_BY(mutex_);
  Thread thread_;
  Thread io_thread_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_CORE_HOST_H_
