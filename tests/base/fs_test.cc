#include "lib/base/fs.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// One contract, both implementations. `root` is an existing folder.
void CheckContract(Fs& fs, const std::string& root) {
  const std::string dir = JoinPath(root, "a/b");
  const std::string path = JoinPath(dir, "f");
  EXPECT_THAT(fs.Create(path, false),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("a/b/f")));
  ASSERT_OK(fs.MakeDirs(dir));
  ASSERT_OK(fs.MakeDirs(dir));  // again is fine
  ASSERT_OK_AND_ASSIGN(auto file, fs.Create(path, /*exclusive=*/true));
  ASSERT_OK(file->Append("hello "));
  ASSERT_OK(file->Append("world"));
  ASSERT_OK(file->Sync());
  ASSERT_OK(file->Close());
  ASSERT_OK(file->Close());
  EXPECT_THAT(file->Append("x"), StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(fs.Create(path, /*exclusive=*/true),
              StatusIs(absl::StatusCode::kAlreadyExists));

  EXPECT_THAT(fs.ReadAll(path), IsOkAndHolds("hello world"));
  EXPECT_THAT(fs.ReadRange(path, 6, 5), IsOkAndHolds("world"));
  EXPECT_THAT(fs.ReadRange(path, 11, 0), IsOkAndHolds(""));
  EXPECT_THAT(fs.ReadRange(path, 6, 6),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(fs.ReadRange(path, 6, ~uint64_t{0}),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(fs.ReadRange(path, ~uint64_t{0}, 1),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(fs.FileSize(path), IsOkAndHolds(11u));
  EXPECT_THAT(fs.ReadAll(JoinPath(dir, "none")),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(fs.ReadAll(dir), StatusIs(absl::StatusCode::kInternal));

  ASSERT_OK_AND_ASSIGN(auto more, fs.OpenAppend(path));
  ASSERT_OK(more->Append("!"));
  EXPECT_THAT(fs.ReadAll(path), IsOkAndHolds("hello world!"));
  ASSERT_OK(fs.Truncate(path, 5));
  EXPECT_THAT(fs.ReadAll(path), IsOkAndHolds("hello"));

  ASSERT_OK(fs.Rename(path, JoinPath(dir, "g")));
  EXPECT_FALSE(fs.Exists(path));
  EXPECT_THAT(fs.Rename(path, JoinPath(dir, "h")),
              StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK(fs.MakeDirs(JoinPath(dir, "d")));
  EXPECT_THAT(fs.List(dir), IsOkAndHolds(ElementsAre("d", "g")));
  EXPECT_THAT(fs.List(path), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK(fs.SyncDir(dir));
  EXPECT_THAT(fs.SyncDir(path), StatusIs(absl::StatusCode::kNotFound));

  // A folder moves with its content.
  ASSERT_OK(fs.Rename(dir, JoinPath(root, "moved")));
  EXPECT_THAT(fs.ReadAll(JoinPath(root, "moved/g")), IsOkAndHolds("hello"));
  ASSERT_OK(fs.RemoveAll(JoinPath(root, "moved")));
  ASSERT_OK(fs.RemoveAll(JoinPath(root, "moved")));
  EXPECT_THAT(fs.List(root), IsOkAndHolds(ElementsAre("a")));
}

TEST(FsTest, RealKeepsTheContract) {
  TempDir dir;
  CheckContract(Fs::Real(), dir.path());
}

TEST(FsTest, FaultFsKeepsTheContract) {
  FaultFs fs;
  ASSERT_OK(fs.MakeDirs("/root"));
  CheckContract(fs, "/root");
}

TEST(FsTest, FullDiskIsResourceExhausted) {
  if (!Fs::Real().Exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  ASSERT_OK_AND_ASSIGN(auto file, Fs::Real().OpenAppend("/dev/full"));
  EXPECT_THAT(file->Append("x"), StatusIs(absl::StatusCode::kResourceExhausted,
                                          HasSubstr("/dev/full")));
}

TEST(FsTest, WriteFileDurablyReplacesAndLeavesNoTemporary) {
  TempDir dir;
  Fs& fs = Fs::Real();
  ASSERT_OK(WriteFileDurably(fs, dir.Join("f"), "old"));
  ASSERT_OK(WriteFileDurably(fs, dir.Join("f"), "new"));
  EXPECT_THAT(fs.ReadAll(dir.Join("f")), IsOkAndHolds("new"));
  EXPECT_THAT(fs.List(dir.path()), IsOkAndHolds(ElementsAre("f")));
}

TEST(PathTest, JoinsAndSplits) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "/b"), "a/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
  EXPECT_EQ(DirName("a/b/c"), "a/b");
  EXPECT_EQ(DirName("/c"), "/");
  EXPECT_EQ(DirName("c"), ".");
  EXPECT_EQ(BaseName("a/b"), "b");
  EXPECT_EQ(BaseName("b"), "b");
}

// --- FaultFs loses what it should.

TEST(FaultFsTest, SyncedDataWithSyncedEntrySurvives) {
  for (uint64_t seed = 0; seed < 16; ++seed) {
    FaultFs fs;
    CounterRng rng(seed, "crash");
    ASSERT_OK_AND_ASSIGN(auto file, fs.Create("f", false));
    ASSERT_OK(file->Append("kept"));
    ASSERT_OK(file->Sync());
    ASSERT_OK(fs.SyncDir("/"));
    ASSERT_OK(file->Append("tail"));
    fs.Crash(rng);
    EXPECT_THAT(fs.ReadAll("f"), IsOkAndHolds(AnyOf("kept", "kepttail")));
    EXPECT_THAT(file->Append("x"), StatusIs(absl::StatusCode::kInternal));
  }
}

TEST(FaultFsTest, UnsyncedEntriesAndSectorsAreLostInSomeCrash) {
  bool lost_entry = false;
  bool kept_entry = false;
  bool hole = false;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    FaultFs fs;
    CounterRng rng(seed, "crash");
    ASSERT_OK_AND_ASSIGN(auto file, fs.Create("f", false));
    ASSERT_OK(file->Append(std::string(1024, 'x')));
    fs.Crash(rng);
    const absl::StatusOr<std::string> data = fs.ReadAll("f");
    lost_entry |= !data.ok();
    kept_entry |= data.ok();
    if (data.ok() && data->size() == 1024) {
      hole |= data->substr(0, 512) == std::string(512, '\0');
    }
  }
  EXPECT_TRUE(lost_entry);
  EXPECT_TRUE(kept_entry);
  EXPECT_TRUE(hole);
}

TEST(FaultFsTest, FailedSyncLosesTheDataForGood) {
  FaultFs fs;
  CounterRng rng(1, "crash");
  ASSERT_OK_AND_ASSIGN(auto file, fs.Create("f", false));
  ASSERT_OK(fs.SyncDir("/"));
  ASSERT_OK(file->Append("data"));
  fs.FailAt(1, absl::InternalError("EIO"));
  EXPECT_THAT(file->Sync(), StatusIs(absl::StatusCode::kInternal, "EIO"));
  EXPECT_OK(file->Sync());  // a retry says OK and means nothing
  fs.Crash(rng);
  EXPECT_THAT(fs.ReadAll("f"), IsOkAndHolds(""));
}

// --- WriteFileDurably: old or new, never a third; after OK, new.

constexpr int kSubsets = 16;

// Fails operation k = 1, 2, ... until none is left to fail, with many crash
// subsets each; `sticky` = the machine is off from then on.
void CheckEveryPoint(bool has_old, bool sticky, const absl::Status& error) {
  // Larger than a sector, so that a torn write would show.
  const std::string old_data(1500, 'o');
  const std::string new_data(2000, 'n');
  bool finished = false;
  for (int k = 1; !finished; ++k) {
    ASSERT_LE(k, 20);
    for (uint64_t seed = 0; seed < kSubsets; ++seed) {
      FaultFs fs;
      CounterRng rng(seed, "crash");
      ASSERT_OK(fs.MakeDirs("d"));
      ASSERT_OK(fs.SyncDir("/"));
      if (has_old) {
        ASSERT_OK(WriteFileDurably(fs, "d/f", old_data));
      }
      const int64_t before = fs.operations();
      fs.FailAt(k, error, sticky);
      const absl::Status written = WriteFileDurably(fs, "d/f", new_data);
      finished = fs.operations() - before < k;
      EXPECT_EQ(written.code(),
                finished ? absl::StatusCode::kOk : error.code());
      for (int look = 0; look < 2; ++look) {  // before and after the crash
        if (look == 1) fs.Crash(rng);
        const absl::StatusOr<std::string> found = fs.ReadAll("d/f");
        if (written.ok()) {
          EXPECT_THAT(found, IsOkAndHolds(new_data));
        } else if (has_old) {
          EXPECT_THAT(found, IsOkAndHolds(AnyOf(old_data, new_data)))
              << "operation " << k << ", seed " << seed;
        } else if (found.ok()) {
          EXPECT_EQ(*found, new_data);
        } else {
          EXPECT_THAT(found, StatusIs(absl::StatusCode::kNotFound));
        }
      }
      // And the next attempt works, whatever lies around.
      ASSERT_OK(WriteFileDurably(fs, "d/f", new_data));
      fs.Crash(rng);
      EXPECT_THAT(fs.ReadAll("d/f"), IsOkAndHolds(new_data));
    }
  }
}

TEST(WriteFileDurablyTest, FailureOfAnyOperationKeepsOldOrNew) {
  for (const bool has_old : {false, true}) {
    CheckEveryPoint(has_old, /*sticky=*/false,
                    absl::ResourceExhaustedError("disk full"));
    CheckEveryPoint(has_old, /*sticky=*/false, absl::InternalError("EIO"));
  }
}

TEST(WriteFileDurablyTest, PowerLossAtAnyOperationKeepsOldOrNew) {
  for (const bool has_old : {false, true}) {
    CheckEveryPoint(has_old, /*sticky=*/true, absl::InternalError("off"));
  }
}

}  // namespace
}  // namespace cox
