#include "learner/checkpoint_writer.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "lib/engine/fake.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::testing::IsEmpty;

constexpr char kFolder[] = "/run/checkpoints/4";

CheckpointJob JobOf(int64_t step, int64_t generation = 1) {
  CheckpointJob job;
  job.directory = absl::StrCat(kFolder, "/step_00000", step, ".g", generation);
  job.identity = {.run_id = "r",
                  .config_hash = "c",
                  .stage = 4,
                  .step = step,
                  .generation = generation,
                  .batch_sha256 = "b",
                  .weight_hash = "w"};
  job.contents.models = {
      {"policy", *FakeSnapshot(FakeModelConfig(6, 4), "policy",
                               static_cast<uint64_t>(step))}};
  job.contents.state = absl::StrCat("state of step ", step);
  return job;
}

// With the checkpoint of step 6 in it.
class CheckpointWriterTest : public ::testing::Test {
 protected:
  static std::unique_ptr<FaultFs> DiskWithStep6(std::string* manifest) {
    auto fs = std::make_unique<FaultFs>();
    EXPECT_OK(fs->MakeDirs("/run"));
    EXPECT_OK(fs->SyncDir("/"));
    const auto written = WriteVerifiedCheckpoint(*fs, JobOf(6));
    EXPECT_OK(written);
    *manifest = written->manifest_sha256;
    return fs;
  }
};

// Old state or new state, never a third.
TEST_F(CheckpointWriterTest, EveryOperationMayFail) {
  std::string manifest6;
  int64_t operations = 0;
  {
    const auto fs = DiskWithStep6(&manifest6);
    const int64_t before = fs->operations();
    ASSERT_OK(WriteVerifiedCheckpoint(*fs, JobOf(7)));
    operations = fs->operations() - before;
  }
  ASSERT_GT(operations, 10);
  const CheckpointJob job = JobOf(7);
  int64_t failures = 0;
  for (const absl::Status& error : {absl::ResourceExhaustedError("disk full"),
                                    absl::InternalError("I/O error")}) {
    for (const bool sticky : {false, true}) {
      for (int64_t k = 1; k <= operations; ++k) {
        const auto fs = DiskWithStep6(&manifest6);
        fs->FailAt(k, error, sticky);
        const auto written = WriteVerifiedCheckpoint(*fs, job);
        fs->Heal();
        failures += written.ok() ? 0 : 1;
        EXPECT_OK(VerifyCheckpoint(*fs, JobOf(6).directory, manifest6)) << k;
        if (!written.ok() && !sticky) {
          EXPECT_EQ(written.status().code(), error.code()) << k;
          EXPECT_FALSE(fs->Exists(job.directory)) << k;
          EXPECT_FALSE(fs->Exists(job.directory + ".tmp")) << k;
        }
        CounterRng rng(static_cast<uint64_t>(k), "crash");
        fs->Crash(rng);
        EXPECT_OK(VerifyCheckpoint(*fs, JobOf(6).directory, manifest6)) << k;
        if (written.ok()) {  // the failure was one that costs nothing
          EXPECT_OK(
              VerifyCheckpoint(*fs, job.directory, written->manifest_sha256))
              << k;
        } else if (fs->Exists(job.directory)) {
          EXPECT_OK(VerifyCheckpoint(*fs, job.directory, "")) << k;
        }
        // The next generation writes the step again.
        EXPECT_OK(WriteVerifiedCheckpoint(*fs, JobOf(7, 2))) << k;
      }
    }
  }
  // All but the sync of the folder above one that exists already.
  EXPECT_EQ(failures, 4 * operations - 2);
}

// Gives back another byte than was written.
class FlippingFs final : public FaultFs {
 public:
  absl::StatusOr<std::string> ReadAll(const std::string& path) override {
    COX_ASSIGN_OR_RETURN(std::string data, FaultFs::ReadAll(path));
    if (flip && !data.empty()) {
      data.back() = static_cast<char>(data.back() ^ 1);
    }
    return data;
  }
  absl::StatusOr<std::string> ReadRange(const std::string& path,
                                        uint64_t offset,
                                        uint64_t length) override {
    COX_ASSIGN_OR_RETURN(std::string data,
                         FaultFs::ReadRange(path, offset, length));
    if (flip && !data.empty()) {
      data.back() = static_cast<char>(data.back() ^ 1);
    }
    return data;
  }
  bool flip = true;
};

TEST_F(CheckpointWriterTest, WhatReadsBackDifferentlyIsNotKept) {
  FlippingFs fs;
  ASSERT_OK(fs.MakeDirs("/run"));
  EXPECT_THAT(WriteVerifiedCheckpoint(fs, JobOf(7)),
              testing::StatusIs(absl::StatusCode::kDataLoss));
  ASSERT_OK_AND_ASSIGN(const auto names, fs.List(kFolder));
  EXPECT_THAT(names, IsEmpty());
}

TEST_F(CheckpointWriterTest, LeavesACheckpointThatIsThereAlone) {
  std::string manifest6;
  const auto fs = DiskWithStep6(&manifest6);
  EXPECT_THAT(WriteVerifiedCheckpoint(*fs, JobOf(6)),
              testing::StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_OK(VerifyCheckpoint(*fs, JobOf(6).directory, manifest6));
}

// Holds the first sync of a folder until it is told to go on.
class SlowFs final : public FaultFs {
 public:
  absl::Status SyncDir(const std::string& dir) override {
    MutexLock lock(&mutex_);
    go_on_.WaitFor(mutex_, absl::Minutes(1),
                   [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return open_; });
    return FaultFs::SyncDir(dir);
  }
  void Open() {
    MutexLock lock(&mutex_);
    open_ = true;
    go_on_.NotifyAll();
  }

 private:
  Mutex mutex_;
  CondVar go_on_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
};

TEST_F(CheckpointWriterTest, WritesBesideItsOwner) {
  SlowFs fs;
  ASSERT_OK(fs.MakeDirs("/run"));
  CheckpointWriter writer(fs);
  EXPECT_FALSE(writer.busy());
  writer.Start(JobOf(7));
  EXPECT_TRUE(writer.busy());
  EXPECT_FALSE(writer.Poll().has_value());
  fs.Open();
  const CheckpointOutcome outcome = writer.Wait();
  EXPECT_FALSE(writer.busy());
  ASSERT_OK(outcome.written);
  EXPECT_EQ(outcome.identity.step, 7);
  EXPECT_OK(VerifyCheckpoint(fs, outcome.directory,
                             outcome.written->manifest_sha256));
  writer.Start(JobOf(8));
  EXPECT_OK(writer.Wait().written);
  // Dropped while it writes: joined.
  writer.Start(JobOf(9));
}

}  // namespace
}  // namespace cox
