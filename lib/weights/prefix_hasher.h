#ifndef COX_LIB_WEIGHTS_PREFIX_HASHER_H_
#define COX_LIB_WEIGHTS_PREFIX_HASHER_H_

// Hashes the tensors of an arena while it is still being filled from the front,
// so that verification ends right after the last byte instead of starting
// there.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lib/base/sync.h"
#include "lib/base/thread.h"
#include "lib/weights/manifest.h"

namespace cox {

// A thread of its own, from the first Advance() on. Advance() and Finish() are
// called by one thread. `manifest` and `arena` must outlive it.
class PrefixHasher {
 public:
  PrefixHasher(const Manifest& manifest, std::span<const std::byte> arena);
  ~PrefixHasher();
  PrefixHasher(const PrefixHasher&) = delete;
  PrefixHasher& operator=(const PrefixHasher&) = delete;

  // arena[0, end) is final. `end` never decreases.
  void Advance(uint64_t end);
  // SHA-256 (hex) of every tensor, in manifest order. REQUIRES
  // Advance(arena size), whose memory nobody writes meanwhile. Once.
  std::vector<std::string> Finish();

 private:
  void Work();
  bool Reached(uint64_t done) const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return stop_ || end_ > done;
  }

  const Manifest& manifest_;
  const std::span<const std::byte> arena_;
  std::vector<std::string> hashes_;  // the thread's, until it is joined
  Mutex mutex_;
  CondVar advanced_;
  uint64_t end_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  Thread thread_;
  bool started_ = false;
};

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_PREFIX_HASHER_H_
