#ifndef COX_LIB_BASE_CLOCK_H_
#define COX_LIB_BASE_CLOCK_H_

// Time behind a seam. Durations are always monotonic; wall time is for people
// (logs, file stamps) and never decides anything.

#include <compare>
#include <cstdint>

#include "absl/time/time.h"

namespace cox {

// Monotonic instant: nanoseconds since an arbitrary start.
struct MonoTime {
  int64_t ns = 0;
  auto operator<=>(const MonoTime&) const = default;
  MonoTime operator+(absl::Duration d) const {
    return {ns + absl::ToInt64Nanoseconds(d)};
  }
  absl::Duration operator-(MonoTime other) const {
    return absl::Nanoseconds(ns - other.ns);
  }
};

class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonoTime Now() const = 0;
  virtual absl::Time WallNow() const = 0;
  // The process's real clock (CLOCK_MONOTONIC, CLOCK_REALTIME).
  static const Clock& Real();
};

// Moves only when told. Thread-compatible.
class FakeClock : public Clock {
 public:
  MonoTime Now() const override { return now_; }
  absl::Time WallNow() const override {
    return absl::UnixEpoch() + absl::Nanoseconds(now_.ns);
  }
  void Advance(absl::Duration d) { now_ = now_ + d; }

 private:
  MonoTime now_{1};
};

}  // namespace cox

#endif  // COX_LIB_BASE_CLOCK_H_
