#include "lib/base/backoff.h"

#include "gtest/gtest.h"

namespace cox {
namespace {

TEST(BackoffTest, GrowsToMaximumWithJitter) {
  Backoff backoff({.initial = absl::Milliseconds(100),
                   .maximum = absl::Milliseconds(400),
                   .multiplier = 2.0},
                  /*jitter_seed=*/1);
  for (int round = 0; round < 2; ++round) {
    // Caps 100, 200, 400, 400; each pause in [cap / 2, cap].
    for (const int cap : {100, 200, 400, 400}) {
      const absl::Duration pause = backoff.Next();
      EXPECT_GE(pause, absl::Milliseconds(cap) / 2);
      EXPECT_LE(pause, absl::Milliseconds(cap));
    }
    backoff.Reset();
  }
}

}  // namespace
}  // namespace cox
