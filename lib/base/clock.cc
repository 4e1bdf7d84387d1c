#include "lib/base/clock.h"

#include <ctime>

#include "absl/time/clock.h"

namespace cox {
namespace {

class RealClock : public Clock {
 public:
  MonoTime Now() const override {
    timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return {int64_t{ts.tv_sec} * 1'000'000'000 + ts.tv_nsec};
  }
  absl::Time WallNow() const override { return absl::Now(); }
};

}  // namespace

const Clock& Clock::Real() {
  static const RealClock clock;
  return clock;
}

}  // namespace cox
