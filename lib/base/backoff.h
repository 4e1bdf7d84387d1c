#ifndef COX_LIB_BASE_BACKOFF_H_
#define COX_LIB_BASE_BACKOFF_H_

// Exponential backoff with full jitter. Thread-compatible.

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"
#include "lib/base/rng.h"

namespace cox {

struct BackoffOptions {
  absl::Duration initial = absl::Milliseconds(100);
  absl::Duration maximum = absl::Seconds(5);
  double multiplier = 2.0;
};

class Backoff {
 public:
  Backoff(BackoffOptions options, uint64_t jitter_seed)
      : options_(options),
        next_(options.initial),
        rng_(jitter_seed, "backoff") {}
  // The next pause: uniform in [cap/2, cap], cap growing up to `maximum`.
  absl::Duration Next() {
    const absl::Duration cap = next_;
    next_ = std::min(options_.maximum, next_ * options_.multiplier);
    return cap * (0.5 + 0.5 * rng_.NextUniform());
  }
  void Reset() { next_ = options_.initial; }

 private:
  BackoffOptions options_;
  absl::Duration next_;
  CounterRng rng_;
};

}  // namespace cox

#endif  // COX_LIB_BASE_BACKOFF_H_
