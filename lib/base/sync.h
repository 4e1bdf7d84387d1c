#ifndef COX_LIB_BASE_SYNC_H_
#define COX_LIB_BASE_SYNC_H_

// Annotated layer over std::mutex (absl::Mutex of the packaged Abseil is
// invisible to ThreadSanitizer).

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace cox {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex)
      : mutex_(mutex) {
    mutex_->Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* mutex_;
};

class CondVar {
 public:
  // Waits until predicate() (evaluated under the lock) or `timeout`; returns
  // predicate().
  template <typename Predicate>
  bool WaitFor(Mutex& mutex, absl::Duration timeout, Predicate predicate)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    // An infinite duration would overflow the clock's arithmetic.
    const absl::Duration bounded = std::min(timeout, absl::Hours(24 * 365));
    const bool met =
        cv_.wait_for(lock, absl::ToChronoNanoseconds(bounded), predicate);
    lock.release();
    return met;
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

// One-shot event. Thread-safe.
class Notification {
 public:
  void Notify() {
    MutexLock lock(&mutex_);
    notified_ = true;
    cv_.NotifyAll();
  }
  bool HasBeenNotified() const {
    MutexLock lock(&mutex_);
    return notified_;
  }
  // True if notified within `timeout`.
  bool WaitFor(absl::Duration timeout) const {
    MutexLock lock(&mutex_);
    return cv_.WaitFor(
        mutex_, timeout,
        [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return notified_; });
  }

 private:
  mutable Mutex mutex_;
  mutable CondVar cv_;
  bool notified_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace cox

#endif  // COX_LIB_BASE_SYNC_H_
