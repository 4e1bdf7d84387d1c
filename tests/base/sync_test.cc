#include "lib/base/sync.h"

#include <utility>

#include "gtest/gtest.h"
#include "lib/base/clock.h"
#include "lib/base/thread.h"

namespace cox {
namespace {

TEST(NotificationTest, WakesAWaiterInAnotherThread) {
  Notification ready;
  Notification done;
  Thread thread("waiter", [&] {
    // Infinite must not overflow into "at once".
    if (ready.WaitFor(absl::InfiniteDuration())) done.Notify();
  });
  EXPECT_FALSE(done.HasBeenNotified());
  ready.Notify();
  EXPECT_TRUE(done.WaitFor(absl::Seconds(30)));
}

TEST(NotificationTest, WaitEndsWithoutNotification) {
  const Notification never;
  EXPECT_FALSE(never.WaitFor(absl::ZeroDuration()));
}

TEST(ThreadTest, MoveAssignmentJoinsTheOldOne) {
  bool first = false;
  bool second = false;
  Thread thread("a", [&] { first = true; });
  thread = Thread("b", [&] { second = true; });
  EXPECT_TRUE(first);
  thread.Join();
  thread.Join();
  EXPECT_TRUE(second);
}

TEST(ThreadTest, ExceptionAtTheTopAborts) {
  EXPECT_DEATH(
      {
        Thread thread("doomed", [] { static_cast<void>(std::string().at(1)); });
        thread.Join();
      },
      "thread=doomed");
}

TEST(FakeClockTest, MovesOnlyWhenTold) {
  FakeClock clock;
  const MonoTime start = clock.Now();
  clock.Advance(absl::Seconds(2));
  EXPECT_EQ(clock.Now() - start, absl::Seconds(2));
  EXPECT_EQ(start + absl::Seconds(2), clock.Now());
}

}  // namespace
}  // namespace cox
