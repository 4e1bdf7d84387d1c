#include "cli/supervisor.h"

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/eval_table.h"
#include "cli/hang_watch.h"
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

ChildSpec Sleeper(int32_t index) {
  ChildSpec child;
  child.name = absl::StrCat("actor-", index);
  child.role = "actor";
  child.options.argv = {"/bin/sleep", "600"};
  return child;
}

std::map<std::string, pid_t> Running(const Supervisor& supervisor) {
  std::map<std::string, pid_t> running;
  for (const auto& [name, pid] : supervisor.Pids()) {
    if (pid != 0) running[name] = pid;
  }
  return running;
}

// Until as many run, or half a minute has passed.
void PollUntil(Supervisor& supervisor, size_t count) {
  const MonoTime end = Clock::Real().Now() + absl::Seconds(30);
  while (Running(supervisor).size() != count && Clock::Real().Now() < end) {
    EXPECT_EQ(supervisor.Poll(), std::nullopt);
  }
}

TEST(SupervisorTest, ResizeStartsAndRetiresTheLastOnes) {
  Supervisor supervisor({Sleeper(0)}, {}, Clock::Real());
  ASSERT_TRUE(supervisor.StartAll().ok());
  const pid_t first = Running(supervisor)["actor-0"];
  ASSERT_TRUE(supervisor.Resize("actor", 3, Sleeper).ok());
  EXPECT_EQ(Running(supervisor).size(), 3u);
  ASSERT_TRUE(supervisor.Resize("actor", 3, Sleeper).ok());
  EXPECT_EQ(Running(supervisor).size(), 3u) << "no one is started twice";
  ASSERT_TRUE(supervisor.Resize("actor", 1, Sleeper).ok());
  PollUntil(supervisor, 1);
  EXPECT_EQ(Running(supervisor),
            (std::map<std::string, pid_t>{{"actor-0", first}}));
  EXPECT_EQ(supervisor.restarts(), 0) << "those that left stay away";
  ASSERT_TRUE(supervisor.Resize("actor", 2, Sleeper).ok());
  EXPECT_EQ(Running(supervisor).size(), 2u);
}

TEST(SupervisorTest, AChildThatHangsIsKilledAndStartedAgain) {
  RestartOptions options;
  options.backoff.initial = absl::Milliseconds(1);
  Supervisor supervisor({Sleeper(0)}, options, Clock::Real());
  ASSERT_TRUE(supervisor.StartAll().ok());
  const pid_t first = Running(supervisor)["actor-0"];
  EXPECT_FALSE(supervisor.KillHung("actor-0", absl::Hours(1))) << "too young";
  EXPECT_FALSE(supervisor.KillHung("actor-7", absl::ZeroDuration()));
  EXPECT_TRUE(supervisor.KillHung("actor-0", absl::ZeroDuration()));
  PollUntil(supervisor, 0);
  PollUntil(supervisor, 1);
  EXPECT_NE(Running(supervisor)["actor-0"], first);
}

cox::v1::StatusResponse Sessions(
    std::vector<std::tuple<std::string, bool, int64_t, std::string, int64_t>>
        sessions) {
  cox::v1::StatusResponse status;
  for (const auto& [name, alive, silent_ms, state, state_ms] : sessions) {
    cox::v1::SessionStatus* session = status.add_sessions();
    session->set_name(name);
    session->set_role(name.substr(0, name.find('-')));
    session->set_alive(alive);
    session->set_silent_ms(silent_ms);
    session->set_state(state);
    session->set_state_ms(state_ms);
  }
  return status;
}

TEST(HangWatchTest, SilentProcessesThatWereNotStartedAgain) {
  const HangLimits limits{absl::Seconds(10), absl::Seconds(60)};
  EXPECT_THAT(HungProcesses(Sessions({{"actor-0", false, 11000, "x", 0},
                                      {"actor-1", false, 9000, "x", 0},
                                      {"actor-2", false, 11000, "x", 0},
                                      {"actor-2", true, 0, "x", 0},
                                      {"actor-3", true, 0, "x", 99999}}),
                            limits),
              testing::ElementsAre("actor-0"));
}

TEST(HangWatchTest, RanksThatTheOthersWaitFor) {
  const HangLimits limits{absl::Seconds(10), absl::Seconds(60)};
  const std::string joining = "joining the learner group";
  EXPECT_THAT(
      HungProcesses(Sessions({{"learner-0", true, 0, joining, 61000},
                              {"learner-1", true, 0, "training 3", 70000}}),
                    limits),
      testing::ElementsAre("learner-1"));
  // Others wait not long enough; or nobody waits for a group.
  EXPECT_THAT(
      HungProcesses(Sessions({{"learner-0", true, 0, joining, 59000},
                              {"learner-1", true, 0, "training 3", 70000}}),
                    limits),
      testing::IsEmpty());
  EXPECT_THAT(
      HungProcesses(Sessions({{"learner-0", true, 0, "training 3", 70000},
                              {"learner-1", true, 0, "training 3", 70000}}),
                    limits),
      testing::IsEmpty());
}

TEST(EvalTableTest, PrintsMeansWithIntervalsAndDashesForWhatIsMissing) {
  auto table = FormatEvalTable(
      "{\"rows\":[{\"name\":\"policy\",\"n\":3,\"gold\":{\"mean\":0.5,"
      "\"low\":0.25,\"high\":0.75},\"kl\":null}],\"measured\":{\"x\":1.5}}");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(*table, testing::HasSubstr("0.500 [0.250, 0.750]"));
  EXPECT_THAT(*table, testing::HasSubstr("x"));
  EXPECT_EQ(FormatEvalTable("[]").status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace cox
