// Checkpoints on a disk that loses power or fails at any operation, and whose
// bits flip.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "learner/checkpoint.h"
#include "lib/base/fault_fs.h"
#include "lib/base/hash.h"
#include "lib/engine/fake.h"
#include "tests/testing/flips.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

constexpr int kSubsets = 16;  // of the unsynced writes, for each power cut
constexpr char kDirectory[] = "/run/checkpoints/4/step_000007.g3";

class CheckpointCrash : public ::testing::Test {
 protected:
  CheckpointCrash() {
    policy_ = *FakeSnapshot(FakeModelConfig(6, 4), "policy", 1);
    contents_.models = {{"policy", policy_}, {"trainer/version_6", policy_}};
    contents_.state = std::string(3000, 's');
    contents_.save.eos_ids = {0};
  }
  static std::unique_ptr<FaultFs> Disk() {
    auto fs = std::make_unique<FaultFs>();
    COX_CHECK(fs->MakeDirs("/run").ok() && fs->SyncDir("/").ok());
    return fs;
  }
  absl::StatusOr<WrittenCheckpoint> Write(Fs& fs, int64_t generation) {
    return WriteCheckpoint(
        fs, absl::StrCat("/run/checkpoints/4/step_000007.g", generation),
        {.run_id = "r",
         .config_hash = "c",
         .stage = 4,
         .step = 7,
         .generation = generation,
         .batch_sha256 = "b",
         .weight_hash = policy_->content_hash},
        contents_);
  }
  int64_t Operations() {
    auto fs = Disk();
    const int64_t before = fs->operations();
    EXPECT_OK(Write(*fs, 3).status());
    return fs->operations() - before;
  }

  std::shared_ptr<const Snapshot> policy_;
  CheckpointContents contents_;
};

// The folder has its name only when all of it is durable: whoever finds it by
// a row finds it whole, and without the name there is nothing to load.
TEST_F(CheckpointCrash, APowerCutAtAnyOperationLeavesAllOrNothing) {
  auto undisturbed = Disk();
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint expected,
                       Write(*undisturbed, 3));
  const int64_t operations = Operations();
  for (int64_t k = 1; k <= operations + 1; ++k) {
    auto fs = Disk();
    if (k <= operations) {
      fs->FailAt(k, absl::InternalError("power"), /*sticky=*/true);
    }
    const absl::StatusOr<WrittenCheckpoint> written = Write(*fs, 3);
    ASSERT_EQ(written.ok(), k > operations);
    for (int subset = 0; subset < kSubsets; ++subset) {
      auto disk = fs->Clone();
      CounterRng rng(static_cast<uint64_t>(k * kSubsets + subset), "subset");
      disk->Crash(rng);
      if (written.ok() || disk->Exists(kDirectory)) {
        EXPECT_OK(VerifyCheckpoint(*disk, kDirectory, expected.manifest_sha256))
            << "k = " << k << ", subset " << subset;
      }
      // The next group writes its own.
      EXPECT_OK(Write(*disk, 4).status()) << "k = " << k;
      if (HasFailure()) return;
    }
  }
}

TEST_F(CheckpointCrash, AnErrorAtAnyOperationIsToldAndTheNextAttemptWorks) {
  const int64_t operations = Operations();
  for (const absl::Status& error : {absl::ResourceExhaustedError("disk full"),
                                    absl::InternalError("i/o error")}) {
    for (const bool sticky : {true, false}) {
      for (int64_t k = 1; k <= operations; ++k) {
        auto fs = Disk();
        fs->FailAt(k, error, sticky);
        const absl::StatusOr<WrittenCheckpoint> written = Write(*fs, 3);
        EXPECT_EQ(written.status().code(), error.code()) << "k = " << k;
        fs->Heal();
        ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint second, Write(*fs, 4));
        CounterRng rng(static_cast<uint64_t>(k), "afterwards");
        fs->Crash(rng);
        EXPECT_OK(VerifyCheckpoint(*fs, "/run/checkpoints/4/step_000007.g4",
                                   second.manifest_sha256));
        if (HasFailure()) return;
      }
    }
  }
}

// A deletion that a power cut interrupts leaves the whole folder or one that
// nobody takes for a checkpoint, and the next group clears it away.
TEST_F(CheckpointCrash, ADeletionCutAtAnyOperationLeavesAllOrLeftovers) {
  auto before = Disk();
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint old, Write(*before, 3));
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint kept, Write(*before, 4));
  ASSERT_OK(before->SyncDir("/run/checkpoints/4"));
  auto counted = before->Clone();
  const int64_t start = counted->operations();
  ASSERT_OK(RemoveCheckpoint(*counted, kDirectory));
  const int64_t operations = counted->operations() - start;
  ASSERT_GT(operations, 2);
  for (int64_t k = 1; k <= operations + 1; ++k) {
    auto fs = before->Clone();
    if (k <= operations) {
      fs->FailAt(k, absl::InternalError("power"), /*sticky=*/true);
    }
    static_cast<void>(RemoveCheckpoint(*fs, kDirectory));
    for (int subset = 0; subset < kSubsets; ++subset) {
      auto disk = fs->Clone();
      CounterRng rng(static_cast<uint64_t>(k * kSubsets + subset), "subset");
      disk->Crash(rng);
      if (disk->Exists(kDirectory)) {
        EXPECT_OK(VerifyCheckpoint(*disk, kDirectory, old.manifest_sha256))
            << "k = " << k << ", subset " << subset;
      }
      // Generation 5 knows the row of generation 4 only.
      EXPECT_OK(SweepCheckpoints(*disk, "/run/checkpoints/4", "r", 5,
                                 {"step_000007.g4"}, /*own_folder=*/true)
                    .status());
      EXPECT_EQ(*disk->List("/run/checkpoints/4"),
                std::vector<std::string>{"step_000007.g4"});
      EXPECT_OK(VerifyCheckpoint(*disk, "/run/checkpoints/4/step_000007.g4",
                                 kept.manifest_sha256));
      if (HasFailure()) return;
    }
  }
}

TEST_F(CheckpointCrash, OnlyWhatNoRowCanNameIsSwept) {
  auto fs = Disk();
  for (const int64_t generation : {3, 4, 5, 6}) {
    ASSERT_OK(Write(*fs, generation).status());
  }
  const std::string folder = "/run/checkpoints/4/";
  for (const char* name : {"step_000009.g4.tmp", "step_000009.g6.tmp",
                           "step_000001.g1.removed", "notes"}) {
    ASSERT_OK(fs->MakeDirs(folder + name));
  }
  // Another run's folder.
  ASSERT_OK_AND_ASSIGN(auto swept, SweepCheckpoints(*fs, folder, "other run", 6,
                                                    {"step_000007.g4"}, false));
  EXPECT_EQ(swept, std::vector<std::string>{"step_000001.g1.removed"});
  ASSERT_OK_AND_ASSIGN(
      swept, SweepCheckpoints(*fs, folder, "r", 6, {"step_000007.g4"}, true));
  EXPECT_EQ(swept, (std::vector<std::string>{"step_000007.g3", "step_000007.g5",
                                             "step_000009.g4.tmp"}));
  EXPECT_EQ(*fs->List(folder),
            (std::vector<std::string>{"notes", "step_000007.g4",
                                      "step_000007.g6", "step_000009.g6.tmp"}));
}

TEST_F(CheckpointCrash, AFlippedBitAnywhereIsFound) {
  auto fs = Disk();
  ASSERT_OK_AND_ASSIGN(const WrittenCheckpoint written, Write(*fs, 3));
  ASSERT_OK_AND_ASSIGN(
      CheckpointManifest manifest,
      VerifyCheckpoint(*fs, kDirectory, written.manifest_sha256));
  manifest.files.push_back({"manifest.json", 0, ""});
  const auto put = [&](const std::string& path, const std::string& bytes) {
    auto file = fs->Create(path, /*exclusive=*/false);
    COX_CHECK(file.ok() && (*file)->Append(bytes).ok());
  };
  CounterRng rng(1, "flips");
  const int64_t each =
      testing::FlipCount(4000) / static_cast<int64_t>(manifest.files.size());
  for (const SavedFile& file : manifest.files) {
    const std::string path = JoinPath(kDirectory, file.name);
    ASSERT_OK_AND_ASSIGN(const std::string good, fs->ReadAll(path));
    for (int64_t n = 0; n < each; ++n) {
      const uint64_t bit = testing::FlipPlace(rng, n, 256, good.size());
      put(path, testing::Flipped(good, bit));
      EXPECT_THAT(VerifyCheckpoint(*fs, kDirectory, written.manifest_sha256),
                  testing::StatusIs(absl::StatusCode::kDataLoss))
          << file.name << ", bit " << bit;
      // Nobody loads it unverified, but the readers may not fall over it.
      static_cast<void>(
          LoadModel(*fs, JoinPath(kDirectory, "policy"), "policy"));
      static_cast<void>(VerifyCheckpoint(*fs, kDirectory, ""));
      if (HasFailure()) return;
    }
    put(path, good);
  }
}

// Weights on their way: a chunk is refused and fetched again, a manifest that
// differs is not that of the version.
TEST_F(CheckpointCrash, AFlippedBitInAChunkOrManifestIsRefused) {
  constexpr size_t kChunk = 512;
  const std::span<const std::byte> arena = policy_->arena->bytes();
  const std::string_view bytes(reinterpret_cast<const char*>(arena.data()),
                               policy_->manifest.arena_bytes);
  const std::string manifest = policy_->manifest.CanonicalText();
  CounterRng rng(3, "flips");
  for (int64_t n = 0; n < testing::FlipCount(2000); ++n) {
    ASSERT_OK_AND_ASSIGN(
        const auto assembler,
        SnapshotAssembler::Create(policy_->manifest, policy_->content_hash,
                                  1 << 20));
    const size_t hit = rng.NextBelow((bytes.size() + kChunk - 1) / kChunk);
    for (size_t at = 0; at < bytes.size(); at += kChunk) {
      const std::string_view chunk = bytes.substr(at, kChunk);
      const std::string hash = Xxh3_128(chunk);
      if (at / kChunk == hit) {
        const std::string bad = testing::Flipped(
            std::string(chunk), rng.NextBelow(8 * chunk.size()));
        EXPECT_THAT(assembler->AddChunk(at, bad, hash),
                    testing::StatusIs(absl::StatusCode::kDataLoss));
        EXPECT_THAT(assembler->AddChunk(
                        at, chunk, testing::Flipped(hash, rng.NextBelow(128))),
                    testing::StatusIs(absl::StatusCode::kDataLoss));
      }
      EXPECT_OK(assembler->AddChunk(at, chunk, hash));
    }
    EXPECT_OK(assembler->Finish().status());
    const absl::StatusOr<Manifest> flipped = Manifest::FromCanonicalText(
        testing::Flipped(manifest, testing::FlipPlace(rng, n, manifest.size(),
                                                      manifest.size())));
    EXPECT_FALSE(flipped.ok() && SnapshotAssembler::Create(
                                     *flipped, policy_->content_hash, 1 << 20)
                                     .ok());
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace cox
