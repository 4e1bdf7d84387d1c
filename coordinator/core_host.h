#ifndef COX_COORDINATOR_CORE_HOST_H_
#define COX_COORDINATOR_CORE_HOST_H_

// The thread around the core: takes events from a bounded queue and gives them
// to CoreTurn. Turns are as long as a commit takes: whatever arrives meanwhile,
// up to a limit, forms the next turn (group commit).
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
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "coordinator/core_turn.h"
#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"

namespace cox {

struct CoreHostOptions {
  const Clock* clock = &Clock::Real();
  absl::Duration tick = absl::Milliseconds(100);
  size_t max_queue = 8192;
};

// Thread-safe unless a method says "core thread".
class CoreHost {
 public:
  using Task = CoreTurn::Task;
  using Reply = CoreTurn::Reply;

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
  bool PostSubmit(SubmitEvent event, std::string payload,
                  CoreTurn::SubmitReply reply);
  // On the thread for reading files.
  bool PostIo(Task task);

  // --- Core thread
  CoordinatorCore& core() { return turn_.core(); }
  void AfterCommit(Reply reply) { turn_.AfterCommit(std::move(reply)); }
  // As CoreTurn::Park, `wait` from now.
  void Park(absl::Duration wait, std::function<bool(bool expired)> attempt,
            std::function<bool()> gone = nullptr, unsigned awaits = kAnyChange);

  // Any thread.
  const SegmentStore& segments() const { return turn_.segments(); }
  int64_t commits() const { return turn_.commits(); }

 private:
  using Item = CoreTurn::Item;

  void Loop();
  void IoLoop();
  std::vector<Item> NextItems();
  void Die(const absl::Status& status);
  bool Enqueue(Item item);

  const CoreHostOptions options_;
  CoreTurn turn_;  // core thread only, but for segments()

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
