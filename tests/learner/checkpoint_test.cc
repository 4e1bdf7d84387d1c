#include "learner/checkpoint.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "lib/base/hash.h"
#include "lib/engine/fake.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;
using testing::StatusIsWith;

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() {
    policy_ = *FakeSnapshot(FakeModelConfig(6, 4), "policy", 1);
    critic_ = *WithHead(*policy_, HeadKind::kScalar, "critic", 2);
    contents_.models = {{"policy", policy_},
                        {"critic", critic_},
                        {"trainer/version_6", policy_}};
    contents_.state = "state of the trainer";
    contents_.save.eos_ids = {0};
    identity_ = {.run_id = "r",
                 .config_hash = "c",
                 .stage = 4,
                 .step = 7,
                 .generation = 3,
                 .batch_sha256 = "b",
                 .weight_hash = policy_->content_hash};
    directory_ = dir_.Join("4/step_000007.g3");
    COX_CHECK(fs_.MakeDirs(dir_.Join("4")).ok());
  }

  absl::StatusOr<WrittenCheckpoint> Write() {
    return WriteCheckpoint(fs_, directory_, identity_, contents_);
  }

  testing::TempDir dir_;
  Fs& fs_ = Fs::Real();
  std::shared_ptr<const Snapshot> policy_;
  std::shared_ptr<const Snapshot> critic_;
  CheckpointContents contents_;
  CheckpointIdentity identity_;
  std::string directory_;
};

TEST_F(CheckpointTest, GivesBackTheSameWeightsAndState) {
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint written, Write());
  EXPECT_FALSE(fs_.Exists(directory_ + ".tmp"));
  ASSERT_OK_AND_ASSIGN(
      const CheckpointManifest manifest,
      VerifyCheckpoint(fs_, directory_, written.manifest_sha256));
  EXPECT_EQ(manifest.identity.step, 7);
  EXPECT_EQ(manifest.identity.weight_hash, policy_->content_hash);
  EXPECT_EQ(manifest.StateSha256(), written.state_sha256);
  for (const StageModel& model : contents_.models) {
    ASSERT_OK_AND_ASSIGN(const auto loaded,
                         LoadModel(fs_, JoinPath(directory_, model.folder),
                                   model.snapshot->manifest.model));
    EXPECT_EQ(loaded->content_hash, model.snapshot->content_hash);
  }
  ASSERT_OK_AND_ASSIGN(const std::string state,
                       fs_.ReadAll(directory_ + "/trainer/state.bin"));
  EXPECT_EQ(state, contents_.state);
}

TEST_F(CheckpointTest, OutlivesAPowerLossWithItsFolders) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    FaultFs fs;
    ASSERT_OK(fs.MakeDirs("/run"));
    ASSERT_OK(fs.SyncDir("/"));
    const std::string directory = "/run/checkpoints/4/step_000007.g3";
    ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint written,
                         WriteCheckpoint(fs, directory, identity_, contents_));
    CounterRng rng(seed, "crash");
    fs.Crash(rng);
    EXPECT_OK(VerifyCheckpoint(fs, directory, written.manifest_sha256));
  }
}

TEST_F(CheckpointTest, DamageToAnyFileIsFoundAndNamed) {
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint written, Write());
  ASSERT_OK_AND_ASSIGN(CheckpointManifest manifest,
                       VerifyCheckpoint(fs_, directory_, ""));
  ASSERT_GE(manifest.files.size(), 7u);
  manifest.files.push_back({"manifest.json", 0, ""});
  for (const SavedFile& file : manifest.files) {
    const std::string path = JoinPath(directory_, file.name);
    ASSERT_OK_AND_ASSIGN(const std::string good, fs_.ReadAll(path));
    const auto verify = [&](std::string bad) {
      EXPECT_OK(WriteFileDurably(fs_, path, bad));
      EXPECT_THAT(
          VerifyCheckpoint(fs_, directory_, written.manifest_sha256),
          StatusIsWith(absl::StatusCode::kDataLoss, HasSubstr(file.name)));
    };
    for (const size_t at : {size_t{0}, good.size() / 2, good.size() - 1}) {
      std::string flipped = good;
      flipped[at] = static_cast<char>(flipped[at] ^ 1);
      verify(flipped);
    }
    verify(good.substr(0, good.size() - 1));
    verify(good + "x");
    ASSERT_OK(fs_.RemoveAll(path));
    const auto missing =
        VerifyCheckpoint(fs_, directory_, written.manifest_sha256);
    EXPECT_THAT(missing, ::testing::Not(testing::IsOk()));
    EXPECT_THAT(std::string(missing.status().message()), HasSubstr(file.name));
    ASSERT_OK(WriteFileDurably(fs_, path, good));
    ASSERT_OK(VerifyCheckpoint(fs_, directory_, written.manifest_sha256));
  }
}

TEST_F(CheckpointTest, AFileThatIsNotInTheManifestIsFound) {
  ASSERT_OK(Write());
  ASSERT_OK(WriteFileDurably(fs_, directory_ + "/policy/extra.bin", "x"));
  EXPECT_THAT(
      VerifyCheckpoint(fs_, directory_, ""),
      StatusIsWith(absl::StatusCode::kDataLoss, HasSubstr("policy/extra.bin")));
}

TEST_F(CheckpointTest, EqualStatesHaveEqualHashesInEveryGeneration) {
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint third, Write());
  identity_.generation = 4;
  directory_ = dir_.Join("4/step_000007.g4");
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint fourth, Write());
  EXPECT_EQ(third.state_sha256, fourth.state_sha256);
  EXPECT_NE(third.manifest_sha256, fourth.manifest_sha256);
  contents_.state += "!";
  directory_ = dir_.Join("4/step_000007.g5");
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint other, Write());
  EXPECT_NE(other.state_sha256, third.state_sha256);
}

TEST_F(CheckpointTest, OverwritesALeftoverButNoCheckpoint) {
  ASSERT_OK(fs_.MakeDirs(directory_ + ".tmp/policy"));
  ASSERT_OK(WriteFileDurably(fs_, directory_ + ".tmp/policy/old", "x"));
  ASSERT_OK(Write());
  ASSERT_OK(VerifyCheckpoint(fs_, directory_, ""));
  EXPECT_THAT(Write(), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(CheckpointTest, TheManifestCannotPointOutside) {
  CheckpointManifest manifest;
  for (const char* name : {"../x", "/etc/passwd", "a/../../x", "", "a//b"}) {
    manifest.files = {{name, 1, std::string(64, '0')}};
    EXPECT_THAT(CheckpointManifest::FromJson(manifest.ToJson()),
                StatusIs(absl::StatusCode::kDataLoss))
        << name;
  }
}

// Records the order of durable operations.
class RecordingFs : public Fs {
 public:
  struct File : WritableFile {
    absl::Status Append(std::string_view data) override {
      return base->Append(data);
    }
    absl::Status Sync() override {
      log->push_back("sync " + name);
      return base->Sync();
    }
    absl::Status Close() override { return base->Close(); }
    std::unique_ptr<WritableFile> base;
    std::vector<std::string>* log = nullptr;
    std::string name;
  };
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path, bool exclusive) override {
    auto file = std::make_unique<File>();
    COX_ASSIGN_OR_RETURN(file->base, Fs::Real().Create(path, exclusive));
    file->log = &log;
    file->name = BaseName(path);
    return std::unique_ptr<WritableFile>(std::move(file));
  }
  absl::StatusOr<std::unique_ptr<WritableFile>> OpenAppend(
      const std::string& path) override {
    return Fs::Real().OpenAppend(path);
  }
  absl::StatusOr<std::string> ReadAll(const std::string& path) override {
    return Fs::Real().ReadAll(path);
  }
  absl::StatusOr<std::string> ReadRange(const std::string& path,
                                        uint64_t offset,
                                        uint64_t length) override {
    return Fs::Real().ReadRange(path, offset, length);
  }
  absl::StatusOr<uint64_t> FileSize(const std::string& path) override {
    return Fs::Real().FileSize(path);
  }
  bool Exists(const std::string& path) override {
    return Fs::Real().Exists(path);
  }
  absl::StatusOr<std::vector<std::string>> List(
      const std::string& dir) override {
    return Fs::Real().List(dir);
  }
  absl::Status MakeDirs(const std::string& path, int mode) override {
    return Fs::Real().MakeDirs(path, mode);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    log.push_back("rename " + BaseName(to));
    return Fs::Real().Rename(from, to);
  }
  absl::Status RemoveAll(const std::string& path) override {
    return Fs::Real().RemoveAll(path);
  }
  absl::Status Truncate(const std::string& path, uint64_t size) override {
    return Fs::Real().Truncate(path, size);
  }
  absl::Status SyncDir(const std::string& dir) override {
    log.push_back("syncdir " + BaseName(dir));
    return Fs::Real().SyncDir(dir);
  }
  std::vector<std::string> log;
};

TEST_F(CheckpointTest, SyncsInTheOrderThatMakesItDurable) {
  RecordingFs fs;
  contents_.models = {{"policy", policy_}};
  ASSERT_OK(WriteCheckpoint(fs, directory_, identity_, contents_));
  const auto place = [&](const std::string& entry) {
    const auto it = std::find(fs.log.begin(), fs.log.end(), entry);
    EXPECT_NE(it, fs.log.end()) << entry;
    return it - fs.log.begin();
  };
  const auto manifest = place("sync manifest.json");
  EXPECT_LT(place("sync model.safetensors"), manifest);
  EXPECT_LT(place("sync config.json"), manifest);
  EXPECT_LT(place("sync state.bin"), manifest);
  EXPECT_LT(manifest, place("syncdir step_000007.g3.tmp"));
  EXPECT_LT(place("syncdir policy"), place("syncdir step_000007.g3.tmp"));
  EXPECT_LT(place("syncdir trainer"), place("syncdir step_000007.g3.tmp"));
  EXPECT_LT(place("syncdir step_000007.g3.tmp"),
            place("rename step_000007.g3"));
  EXPECT_EQ(fs.log.back(), "syncdir 4");
}

TEST_F(CheckpointTest, RemovedHalfWayItIsNoCheckpointAndGoesNextTime) {
  ASSERT_OK(Write().status());
  // As a process leaves it that dies while it deletes.
  const std::string half = dir_.Join("4/step_000005.g2.removed");
  ASSERT_OK(fs_.MakeDirs(half));
  EXPECT_EQ(ParseCheckpointName(BaseName(half)), std::nullopt);
  EXPECT_OK(RemoveCheckpoint(fs_, directory_));
  EXPECT_FALSE(fs_.Exists(directory_));
  EXPECT_FALSE(fs_.Exists(half));
  EXPECT_OK(RemoveCheckpoint(fs_, directory_)) << "again";
}

TEST(CheckpointNameTest, RecognisesOnlyItsOwnNames) {
  ASSERT_TRUE(ParseCheckpointName("step_000120.g3").has_value());
  EXPECT_EQ(ParseCheckpointName("step_000120.g3")->step, 120);
  EXPECT_EQ(ParseCheckpointName("step_000120.g3")->generation, 3);
  EXPECT_TRUE(ParseCheckpointName("step_1000000.g12").has_value());
  for (const char* name :
       {"step_000120.g3.tmp", "step_120.g3", "step_000120", "step_000120.g",
        "step_00012x.g3", "latest", "step_000120.g-1", ""}) {
    EXPECT_FALSE(ParseCheckpointName(name).has_value()) << name;
  }
}

}  // namespace
}  // namespace cox
