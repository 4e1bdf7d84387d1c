#include "learner/lineage_core.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using Kind = LineageAction::Kind;

std::string Name(const LineageAction& action) {
  const char* names[] = {"publish", "take",   "train", "checkpoint",
                         "commit",  "retain", "await", "done"};
  return absl::StrCat(names[static_cast<int>(action.kind)], action.step,
                      action.with_checkpoint ? "+c" : "");
}

// Actions in order, each of them done at once.
std::string Walk(LineageCore core, int limit = 40) {
  std::string text;
  for (int i = 0; i < limit; ++i) {
    const LineageAction action = core.Next();
    absl::StrAppend(&text, text.empty() ? "" : " ", Name(action));
    if (action.kind == Kind::kDone) {
      return text;
    }
    if (action.kind == Kind::kAwaitCheckpoint) {
      core.OnCheckpointWritten();
    } else {
      core.OnDone(action);
    }
  }
  return text;
}

TEST(LineageCore, ATextStageTrainsCheckpointsAndCommits) {
  EXPECT_EQ(Walk(LineageCore({.total_steps = 3, .checkpoint_every = 2}, 0)),
            "train1 commit1 train2 checkpoint2 commit2+c retain2 train3 "
            "checkpoint3 commit3+c retain3 done3");
}

TEST(LineageCore, AVersionIsPublishedOnlyAfterItsStep) {
  EXPECT_EQ(
      Walk(LineageCore(
          {.total_steps = 2, .checkpoint_every = 10, .has_batches = true}, 0)),
      "publish0 take1 train1 commit1 publish1 take2 train2 checkpoint2 "
      "commit2+c retain2 done2");
}

TEST(LineageCore, AResumedStagePublishesWhatOpenUnitsMayNeed) {
  EXPECT_EQ(Walk(LineageCore({.total_steps = 4,
                              .checkpoint_every = 10,
                              .has_batches = true,
                              .lag = 2},
                             3)),
            "publish1 publish2 publish3 take4 train4 checkpoint4 commit4+c "
            "retain4 done4");
}

TEST(LineageCore, OtherRanksFollowTheVerdict) {
  EXPECT_EQ(Walk(LineageCore({.total_steps = 2,
                              .checkpoint_every = 1,
                              .has_batches = true,
                              .speaks = false},
                             0)),
            "take1 train1 commit1 take2 train2 commit2 done2");
}

TEST(LineageCore, ACheckpointBesideIsCommittedWhenItIsWritten) {
  LineageCore core(
      {.total_steps = 3, .checkpoint_every = 1, .checkpoint_beside = true}, 0);
  const auto does = [&core](const char* expected) {
    const LineageAction action = core.Next();
    EXPECT_EQ(Name(action), expected);
    core.OnDone(action);
  };
  does("train1");
  does("commit1");
  does("checkpoint1");
  EXPECT_TRUE(core.writing());
  // Written while step 2 trains: the step ends first.
  const LineageAction train = core.Next();
  EXPECT_EQ(Name(train), "train2");
  core.OnCheckpointWritten();
  core.OnDone(train);
  does("retain1");
  EXPECT_EQ(core.checkpointed(), 1);
  does("commit2");
  does("checkpoint2");
  does("train3");
  does("commit3");
  // One at a time.
  EXPECT_EQ(Name(core.Next()), "await3");
  core.OnCheckpointWritten();
  does("retain2");
  does("checkpoint3");
  EXPECT_EQ(Name(core.Next()), "await3");
  // The last one is tried again until it is there.
  core.OnCheckpointFailed();
  does("checkpoint3");
  core.OnCheckpointWritten();
  does("retain3");
  EXPECT_EQ(Name(core.Next()), "done3");
}

TEST(LineageCore, ACheckpointThatFailsIsLeftOut) {
  LineageCore core(
      {.total_steps = 3, .checkpoint_every = 1, .checkpoint_beside = true}, 0);
  for (int i = 0; i < 3; ++i) {
    core.OnDone(core.Next());
  }
  core.OnCheckpointFailed();
  EXPECT_EQ(Name(core.Next()), "train2");
  EXPECT_EQ(core.checkpointed(), 0);
}

TEST(LineageCore, KnowsWhichVersionsACheckpointKeeps) {
  const LineageCore core({.total_steps = 9, .has_batches = true, .lag = 2}, 0);
  EXPECT_FALSE(core.NeedsVersion(2, 5));
  EXPECT_TRUE(core.NeedsVersion(3, 5));
  EXPECT_TRUE(core.NeedsVersion(4, 5));
  EXPECT_FALSE(core.NeedsVersion(5, 5));
}

}  // namespace
}  // namespace cox
