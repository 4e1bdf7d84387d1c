#include "coordinator/stage_steps.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/config/config.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using testing::StatusIs;

TEST(StageStepsTest, AreWholePassesOverTheRows) {
  testing::TempDir dir;
  cox::v1::RunConfig config = DefaultConfig();
  config.mutable_dpo()->set_batch(2);
  config.mutable_dpo()->set_epochs(3);
  EXPECT_THAT(
      StepsOverRows(Fs::Real(), config, dir.path(), StageKind::kDpo).status(),
      StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK(WriteFileDurably(Fs::Real(), dir.Join("comparisons.jsonl"),
                             "{}\n\n{}\n{}\n{}\n{}\n"));
  EXPECT_FALSE(HasOwnRows(config, StageKind::kDpo));
  ASSERT_OK_AND_ASSIGN(
      const int64_t dpo,
      StepsOverRows(Fs::Real(), config, dir.path(), StageKind::kDpo));
  EXPECT_EQ(dpo, 9);
  // Its own files come first; a last line needs no line break.
  ASSERT_OK(WriteFileDurably(Fs::Real(), dir.Join("kto.jsonl"), "{}\n{}"));
  config.mutable_kto()->add_train(dir.Join("kto.jsonl"));
  EXPECT_TRUE(HasOwnRows(config, StageKind::kKto));
  ASSERT_OK_AND_ASSIGN(
      const int64_t kto,
      StepsOverRows(Fs::Real(), config, dir.path(), StageKind::kKto));
  EXPECT_EQ(kto, 1);
  for (const StageKind kind : {StageKind::kRm, StageKind::kRft}) {
    EXPECT_OK(StepsOverRows(Fs::Real(), config, dir.path(), kind));
  }
  ASSERT_OK(WriteFileDurably(Fs::Real(), dir.Join("kto.jsonl"), "\n"));
  EXPECT_THAT(
      StepsOverRows(Fs::Real(), config, dir.path(), StageKind::kKto).status(),
      StatusIs(absl::StatusCode::kInvalidArgument));
  for (const StageKind kind : {StageKind::kSft, StageKind::kCollect,
                               StageKind::kPpo, StageKind::kEval}) {
    EXPECT_FALSE(CountsRows(kind));
  }
}

}  // namespace
}  // namespace cox
