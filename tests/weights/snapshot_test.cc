#include "lib/weights/snapshot.h"

#include <cstring>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/hash.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::shared_ptr<const Snapshot> MakeSmall(float first = 0.0f) {
  const Manifest layout = LayOut("policy", "{}", DType::kF32,
                                 {{"w", {10, 10}}, {"b", {16}}, {"h", {7}}});
  std::vector<float> values(layout.arena_bytes / sizeof(float));
  std::iota(values.begin(), values.end(), first);
  auto snapshot = SnapshotFromFloats(layout, values);
  COX_CHECK(snapshot.ok());
  return *snapshot;
}

std::string ArenaText(const Snapshot& snapshot) {
  const auto bytes = snapshot.arena->bytes();
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

TEST(ArenaTest, IsAlignedAndZeroed) {
  for (const uint64_t bytes : {1u, 64u, 1000u}) {
    Arena arena(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(arena.bytes().data()) % 64, 0u);
    EXPECT_EQ(arena.bytes().size(), bytes);
    for (const std::byte b : arena.bytes()) ASSERT_EQ(b, std::byte{0});
  }
  EXPECT_TRUE(Arena(0).floats().empty());
}

TEST(SnapshotTest, HashIsAFunctionOfTheWeights) {
  EXPECT_EQ(MakeSmall()->content_hash, MakeSmall()->content_hash);
  EXPECT_NE(MakeSmall()->content_hash, MakeSmall(1.0f)->content_hash);
  EXPECT_EQ(MakeSmall()->content_hash, MakeSmall()->manifest.ContentHash());
}

TEST(SnapshotTest, FindsTensors) {
  const auto snapshot = MakeSmall();
  ASSERT_OK_AND_ASSIGN(const auto bytes, snapshot->Tensor("b"));
  EXPECT_EQ(bytes.size(), 64u);
  float first;
  std::memcpy(&first, bytes.data(), sizeof(first));
  EXPECT_EQ(first, 112.0f);  // 100 floats of w, rounded up to 448 bytes
  EXPECT_THAT(snapshot->Tensor("x"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("'x'")));
}

TEST(SnapshotTest, SizesMustAgree) {
  const Manifest layout = LayOut("m", "", DType::kF32, {{"w", {16}}});
  EXPECT_THAT(SnapshotFromFloats(layout, std::vector<float>(15)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(MakeSnapshot(layout, std::make_shared<Arena>(128)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(SnapshotTest, ParallelHashesEqualSequentialOnes) {
  // Above the 8 MiB from which threads are used.
  const Manifest layout = LayOut(
      "m", "", DType::kF32,
      {{"a", {1 << 20}}, {"b", {3}}, {"c", {1 << 20}}, {"d", {1 << 18}}});
  std::vector<float> values(layout.arena_bytes / sizeof(float));
  std::iota(values.begin(), values.end(), 0.0f);
  ASSERT_OK_AND_ASSIGN(const auto snapshot, SnapshotFromFloats(layout, values));
  for (const TensorInfo& tensor : snapshot->manifest.tensors) {
    EXPECT_EQ(tensor.sha256, Sha256Hex(*snapshot->Tensor(tensor.name)));
  }
}

class AssemblerTest : public ::testing::Test {
 protected:
  std::unique_ptr<SnapshotAssembler> Make() {
    auto assembler = SnapshotAssembler::Create(
        source_->manifest, source_->content_hash, /*max_bytes=*/1 << 20);
    COX_CHECK(assembler.ok());
    return *std::move(assembler);
  }
  // Chunk `index` of `size` bytes.
  absl::Status Add(SnapshotAssembler& assembler, const std::string& data,
                   size_t index, size_t size) {
    const std::string chunk = data.substr(index * size, size);
    return assembler.AddChunk(index * size, chunk, Xxh3_128(chunk));
  }

  const std::shared_ptr<const Snapshot> source_ = MakeSmall();
  const std::string data_ = ArenaText(*source_);
};

TEST_F(AssemblerTest, ChunksInAnyOrderAndTwiceGiveTheSnapshot) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const size_t size = 13 + seed;
    const auto count = static_cast<int64_t>((data_.size() + size - 1) / size);
    auto assembler = Make();
    for (const int64_t i : Permutation(count, seed, "chunks")) {
      EXPECT_FALSE(assembler->complete());
      EXPECT_THAT(assembler->Finish(),
                  StatusIs(absl::StatusCode::kFailedPrecondition));
      ASSERT_OK(Add(*assembler, data_, static_cast<size_t>(i), size));
      // A resumed transfer may repeat chunks, also across others' borders.
      ASSERT_OK(Add(*assembler, data_, static_cast<size_t>(i), size));
    }
    ASSERT_OK(Add(*assembler, data_, 1, size * 2));
    EXPECT_EQ(assembler->bytes_received(), assembler->total_bytes());
    ASSERT_OK_AND_ASSIGN(const auto snapshot, assembler->Finish());
    EXPECT_EQ(snapshot->content_hash, source_->content_hash);
    EXPECT_EQ(ArenaText(*snapshot), data_);
    EXPECT_THAT(assembler->Finish(),
                StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_THAT(Add(*assembler, data_, 0, size),
                StatusIs(absl::StatusCode::kFailedPrecondition));
  }
}

TEST_F(AssemblerTest, DamagedChunkIsRefusedAndNotCounted) {
  auto assembler = Make();
  std::string chunk = data_.substr(0, 100);
  const std::string checksum = Xxh3_128(chunk);
  chunk[50] ^= 1;
  EXPECT_THAT(assembler->AddChunk(0, chunk, checksum),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(assembler->AddChunk(0, chunk, ""),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(assembler->bytes_received(), 0u);
}

TEST_F(AssemblerTest, OutOfRangeChunksAreInvalid) {
  auto assembler = Make();
  const std::string chunk(64, 'x');
  for (const uint64_t offset :
       {data_.size() - 63, data_.size() + 1, ~uint64_t{0}, ~uint64_t{0} - 63}) {
    EXPECT_THAT(assembler->AddChunk(offset, chunk, Xxh3_128(chunk)),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

// The sender's memory went bad after the hash was made: xxh3 is right, the
// tensor is not.
TEST_F(AssemblerTest, FlippedByteNamesTheTensor) {
  for (const TensorInfo& tensor : source_->manifest.tensors) {
    auto assembler = Make();
    std::string data = data_;
    data[tensor.offset + tensor.bytes - 1] ^= 1;
    ASSERT_OK(Add(*assembler, data, 0, data.size()));
    EXPECT_THAT(
        assembler->Finish(),
        StatusIs(absl::StatusCode::kDataLoss,
                 HasSubstr(absl::StrCat("tensor '", tensor.name, "'"))));
    // Fetched again from elsewhere, it becomes the version.
    EXPECT_EQ(assembler->bytes_received(), 0u);
    ASSERT_OK(Add(*assembler, data_, 0, data_.size()));
    EXPECT_OK(assembler->Finish());
  }
}

TEST_F(AssemblerTest, CreateRefusesBadManifests) {
  const auto invalid = [](const char* what) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what));
  };
  const std::string& hash = source_->content_hash;
  EXPECT_THAT(
      SnapshotAssembler::Create(source_->manifest, hash, data_.size() - 1),
      invalid("allowed"));
  EXPECT_THAT(SnapshotAssembler::Create(source_->manifest, std::string(64, '0'),
                                        1 << 20),
              invalid("expected hash"));
  Manifest manifest = source_->manifest;
  manifest.tensors[1].sha256.clear();
  EXPECT_THAT(SnapshotAssembler::Create(manifest, hash, 1 << 20),
              invalid("no sha256"));
  manifest = source_->manifest;
  manifest.arena_bytes = uint64_t{1} << 60;
  EXPECT_THAT(SnapshotAssembler::Create(manifest, hash, ~uint64_t{0}),
              invalid("arena_bytes"));
}

TEST(SnapshotStoreTest, KeepsWhatIsNamed) {
  SnapshotStore store;
  const auto a = MakeSmall(0);
  const auto b = MakeSmall(1);
  store.Put(a);
  store.Put(b);
  store.Put(a);
  EXPECT_EQ(store.Held().size(), 2u);
  EXPECT_EQ(store.Get(a->content_hash), a);
  store.Keep({b->content_hash, "unknown"});
  EXPECT_THAT(store.Held(), ElementsAre(b->content_hash));
  EXPECT_EQ(store.Get(a->content_hash), nullptr);
}

}  // namespace
}  // namespace cox
