#include "cli/watch_command.h"

#include "gmock/gmock.h"
#include "lib/base/fs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::testing::HasSubstr;

cox::v1::StatusResponse Status(int64_t step) {
  cox::v1::StatusResponse status;
  status.set_name("demo");
  status.set_state("running");
  auto* done = status.add_stages();
  done->set_kind("sft");
  done->set_state("done");
  done->set_step(5);
  done->set_total_steps(5);
  auto* stage = status.add_stages();
  stage->set_kind("ppo");
  stage->set_state("running");
  stage->set_step(step);
  stage->set_total_steps(40);
  status.set_units_pending(3);
  status.set_units_leased(2);
  status.set_units_submitted(1);
  for (const bool alive : {true, false}) {
    auto* actor = status.add_sessions();
    actor->set_role("actor");
    actor->set_name(alive ? "actor-0" : "actor-1");
    actor->set_alive(alive);
    actor->set_state("generating s1.3.0");
    actor->set_waiting_for(alive ? "" : "coordinator");
  }
  auto* stale = status.add_last_metrics();
  stale->set_name("async/staleness_max");
  stale->set_value(2);
  return status;
}

TEST(TopTest, OneScreen) {
  const auto before = Status(10);
  const std::string screen = TopScreen(Status(16), &before, 2);
  EXPECT_THAT(screen, HasSubstr("run demo: running"));
  EXPECT_THAT(screen, HasSubstr("sft 5/5  >ppo 16/40"));
  EXPECT_THAT(screen, HasSubstr("steps/s: 3.00"));
  EXPECT_THAT(screen, HasSubstr("3 pending  2 leased  1 submitted"));
  EXPECT_THAT(screen, HasSubstr("actor 1/2"));
  EXPECT_THAT(screen, HasSubstr("max 2 versions"));
  EXPECT_THAT(screen, HasSubstr("waits for coordinator"));
  EXPECT_THAT(TopScreen(Status(1), nullptr, 0), HasSubstr("steps/s: -"));
  // A coordinator that was restarted with another run directory.
  EXPECT_THAT(TopScreen(Status(1), &before, 1), HasSubstr("steps/s: 0.00"));
}

TEST(LogFollowerTest, GivesWholeLinesOnce) {
  testing::TempDir dir;
  const auto append = [&dir](const std::string& file, const std::string& text) {
    auto out = *Fs::Real().OpenAppend(dir.Join(file));
    ASSERT_OK(out->Append(text));
    ASSERT_OK(out->Close());
  };
  append("actor-0.log", "old\n");
  LogFollower follower(dir.path(), "");
  follower.SkipAll();
  EXPECT_EQ(follower.Poll(), "");
  append("actor-0.log", "one\ntwo");
  EXPECT_EQ(follower.Poll(), "actor-0: one\n");
  append("actor-0.log", " halves\n");
  append("learner-0.log", "new process\n");
  append("notes.txt", "no log\n");
  EXPECT_EQ(follower.Poll(), "actor-0: two halves\nlearner-0: new process\n");
  EXPECT_EQ(follower.Poll(), "");
  // A file that begins anew.
  ASSERT_OK(WriteFileDurably(Fs::Real(), dir.Join("actor-0.log"), "a\n"));
  EXPECT_EQ(follower.Poll(), "actor-0: a\n");
  LogFollower one(dir.path(), "learner-0");
  EXPECT_EQ(one.Poll(), "new process\n");
}

}  // namespace
}  // namespace cox
