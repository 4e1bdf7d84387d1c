#include "cli/supervisor.h"

#include "cli/eval_table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using Action = RestartPolicy::Action;

ChildExit Exited(int code) { return {.exited = true, .code = code}; }
ChildExit Killed(int signal) { return {.exited = true, .signal = signal}; }

TEST(RestartPolicyTest, ExitZeroFinishes) {
  RestartPolicy policy({}, 1);
  EXPECT_EQ(policy.OnExit(Exited(0), absl::Seconds(1), {}).action,
            Action::kFinished);
}

TEST(RestartPolicyTest, SignalsAndFortyTwoRestartWithGrowingDelay) {
  RestartPolicy policy({}, 1);
  const auto first = policy.OnExit(Killed(9), absl::Seconds(1), {});
  EXPECT_EQ(first.action, Action::kRestart);
  EXPECT_LE(first.delay, absl::Milliseconds(200));
  const auto second = policy.OnExit(Exited(42), absl::Seconds(1), {});
  EXPECT_EQ(second.action, Action::kRestart);
  EXPECT_GE(second.delay, absl::Milliseconds(200));  // uniform in [cap/2, cap]
}

TEST(RestartPolicyTest, LongLifeResetsTheDelay) {
  RestartPolicy policy({}, 1);
  for (int i = 0; i < 5; ++i) {
    policy.OnExit(Killed(9), absl::Seconds(1), {});
  }
  EXPECT_LE(policy.OnExit(Killed(9), absl::Minutes(1), {}).delay,
            absl::Milliseconds(200));
}

TEST(RestartPolicyTest, CodesOfPeopleEndTheRunAndPassThrough) {
  for (int code : {1, 2, 43}) {
    RestartPolicy policy({}, 1);
    const auto decision = policy.OnExit(Exited(code), absl::Seconds(1), {});
    EXPECT_EQ(decision.action, Action::kEndRun);
    EXPECT_EQ(decision.exit_code, code);
  }
  RestartPolicy policy({}, 1);
  EXPECT_EQ(policy.OnExit(Exited(7), absl::Seconds(1), {}).exit_code, 42);
}

TEST(RestartPolicyTest, TooManyRestartsWithinTheWindowEndTheRun) {
  RestartPolicy policy({.max_restarts = 2, .window = absl::Minutes(10)}, 1);
  MonoTime now{1};
  EXPECT_EQ(policy.OnExit(Killed(9), absl::Seconds(1), now).action,
            Action::kRestart);
  EXPECT_EQ(policy.OnExit(Killed(9), absl::Seconds(1), now).action,
            Action::kRestart);
  // The window passes: the old restarts are forgotten.
  now = now + absl::Minutes(11);
  EXPECT_EQ(policy.OnExit(Killed(9), absl::Seconds(1), now).action,
            Action::kRestart);
  EXPECT_EQ(policy.OnExit(Killed(9), absl::Seconds(1), now).action,
            Action::kRestart);
  const auto last = policy.OnExit(Killed(9), absl::Seconds(1), now);
  EXPECT_EQ(last.action, Action::kEndRun);
  EXPECT_EQ(last.exit_code, 42);
}

TEST(EvalTableTest, PrintsMeansWithIntervalsAndDashesForWhatIsMissing) {
  auto table = FormatEvalTable(
      "{\"rows\":[{\"name\":\"policy\",\"n\":3,\"gold\":{\"mean\":0.5,"
      "\"low\":0.25,\"high\":0.75},\"kl\":null}],\"measured\":{\"x\":1.5}}");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(*table, testing::HasSubstr("0.500 [0.250, 0.750]"));
  EXPECT_THAT(*table, testing::HasSubstr("x"));
  EXPECT_EQ(FormatEvalTable("[]").status().code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace cox
