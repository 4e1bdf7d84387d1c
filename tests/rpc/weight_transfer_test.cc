#include <atomic>
#include <numeric>

#include "gtest/gtest.h"
#include "lib/base/hash.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/server.h"
#include "lib/rpc/weight_fetcher.h"
#include "lib/rpc/weight_server.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

// Two tensors, 3.5 chunks of 1 MiB.
std::shared_ptr<const Snapshot> MakeWeights(float first) {
  const Manifest layout =
      LayOut("policy", "{}", DType::kF32,
             {{"a", {1 << 19}}, {"b", {(1 << 18) + (1 << 17)}}});
  std::vector<float> values(layout.arena_bytes / 4);
  std::iota(values.begin(), values.end(), first);
  return *SnapshotFromFloats(layout, values);
}

// One process that serves weights.
struct Peer {
  explicit Peer(std::function<void(v1::Chunk*)> hook = nullptr)
      : service(&store, {.run_id = [] { return std::string("run"); },
                         .on_chunk = [this, hook](v1::Chunk* chunk) {
                           ++chunks;
                           offsets.push_back(chunk->offset());
                           if (hook) hook(chunk);
                         }}),
        server(*RpcServer::Start({.services = {&service}})) {}
  SnapshotStore store;
  std::atomic<int> chunks = 0;
  std::vector<uint64_t> offsets;  // one stream at a time in these tests
  WeightServiceImpl service;
  std::unique_ptr<RpcServer> server;
};

VersionSource SourceOf(const Snapshot& snapshot,
                       std::vector<std::string> addresses) {
  return {.model = "policy",
          .version = {0, 1},
          .content_hash = snapshot.content_hash,
          .manifest = snapshot.manifest.CanonicalText(),
          .addresses = std::move(addresses)};
}

FetchOptions Options() {
  FetchOptions options;
  options.caller.run_id = "run";
  options.sleep = [](absl::Duration) { return false; };  // no pauses
  options.deadline = absl::Seconds(20);
  return options;
}

void ExpectSame(const absl::StatusOr<std::shared_ptr<const Snapshot>>& got,
                const Snapshot& want) {
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ((*got)->content_hash, want.content_hash);
  const auto a = (*got)->arena->floats();
  const auto b = want.arena->floats();
  EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
}

TEST(WeightTransferTest, AVersionArrivesBitForBit) {
  auto weights = MakeWeights(0);
  Peer peer;
  peer.store.Put(weights);
  ExpectSame(FetchSnapshot(SourceOf(*weights, {peer.server->address()}),
                           Options()),
             *weights);
  EXPECT_EQ(peer.chunks, 4);
}

TEST(WeightTransferTest, ADamagedChunkIsFetchedElsewhereFromItsOffset) {
  auto weights = MakeWeights(0);
  Peer bad([](v1::Chunk* chunk) {
    if (chunk->offset() == 2 * kChunkBytes) chunk->mutable_data()->at(7) ^= 4;
  });
  Peer good;
  bad.store.Put(weights);
  good.store.Put(weights);
  ExpectSame(FetchSnapshot(SourceOf(*weights, {bad.server->address(),
                                               good.server->address()}),
                           Options()),
             *weights);
  // The good peer was asked for the rest only.
  EXPECT_EQ(good.offsets,
            (std::vector<uint64_t>{2 * kChunkBytes, 3 * kChunkBytes}));
}

TEST(WeightTransferTest, AChunkDamagedOnceComesRightTheSecondTime) {
  auto weights = MakeWeights(0);
  int damaged = 0;
  Peer peer([&damaged](v1::Chunk* chunk) {
    if (chunk->offset() == kChunkBytes && damaged++ == 0) {
      chunk->mutable_data()->at(0) ^= 1;
    }
  });
  peer.store.Put(weights);
  ExpectSame(FetchSnapshot(SourceOf(*weights, {peer.server->address()}),
                           Options()),
             *weights);
}

TEST(WeightTransferTest, ASourceOfBadChunksIsQuarantined) {
  auto weights = MakeWeights(0);
  Peer bad([](v1::Chunk* chunk) {
    if (chunk->offset() == kChunkBytes) chunk->mutable_data()->at(0) ^= 1;
  });
  bad.store.Put(weights);
  EXPECT_THAT(FetchSnapshot(SourceOf(*weights, {bad.server->address()}),
                            Options()),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(std::count(bad.offsets.begin(), bad.offsets.end(), kChunkBytes),
            3);
}

TEST(WeightTransferTest, AWrongTensorIsNamedAndNeverReturned) {
  auto weights = MakeWeights(0);
  const auto lie = [](v1::Chunk* chunk) {
    if (chunk->offset() != 3 * kChunkBytes) return;
    chunk->mutable_data()->at(9) ^= 1;
    chunk->set_xxh3(Xxh3_128(chunk->data()));  // passes the chunk's guard
  };
  Peer liar(lie);
  liar.store.Put(weights);
  EXPECT_THAT(FetchSnapshot(SourceOf(*weights, {liar.server->address()}),
                            Options()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor 'b'")));
  Peer good;
  good.store.Put(weights);
  ExpectSame(FetchSnapshot(SourceOf(*weights, {liar.server->address(),
                                               good.server->address()}),
                           Options()),
             *weights);
  EXPECT_EQ(good.chunks, 4);  // all over again, without the liar
}

TEST(WeightTransferTest, AStreamThatBreaksIsResumedByAPeer) {
  auto weights = MakeWeights(0);
  Peer first([&first](v1::Chunk* chunk) {
    // Out of order from here: as good as a broken stream.
    if (chunk->offset() >= 2 * kChunkBytes) chunk->set_offset(0);
  });
  Peer second;
  first.store.Put(weights);
  second.store.Put(weights);
  ExpectSame(FetchSnapshot(SourceOf(*weights, {first.server->address(),
                                               second.server->address()}),
                           Options()),
             *weights);
  EXPECT_EQ(second.offsets.front(), 2 * kChunkBytes);
}

TEST(WeightTransferTest, SkipsSourcesThatAreGoneOrDoNotHold) {
  auto weights = MakeWeights(0);
  Peer empty;
  Peer good;
  good.store.Put(weights);
  std::string gone;
  {
    Peer dead;
    gone = dead.server->address();
  }
  ExpectSame(FetchSnapshot(
                 SourceOf(*weights, {gone, empty.server->address(),
                                     good.server->address()}),
                 Options()),
             *weights);
}

TEST(WeightTransferTest, GivesUpWithTheLastError) {
  auto weights = MakeWeights(0);
  Peer empty;
  FetchOptions options = Options();
  options.patience = absl::ZeroDuration();
  EXPECT_THAT(FetchSnapshot(SourceOf(*weights, {empty.server->address()}),
                            options),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("not held")));
  EXPECT_THAT(FetchSnapshot(SourceOf(*weights, {}), options),
              StatusIs(absl::StatusCode::kUnavailable));
  options = Options();
  options.sleep = [](absl::Duration) { return true; };
  EXPECT_THAT(FetchSnapshot(SourceOf(*weights, {empty.server->address()}),
                            options),
              StatusIs(absl::StatusCode::kCancelled));
}

TEST(WeightTransferTest, RefusesBadManifestsSizesAndStrangers) {
  auto weights = MakeWeights(0);
  Peer peer;
  peer.store.Put(weights);
  const VersionSource source = SourceOf(*weights, {peer.server->address()});
  VersionSource other = source;
  other.content_hash = MakeWeights(1)->content_hash;
  EXPECT_THAT(FetchSnapshot(other, Options()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  FetchOptions small = Options();
  small.max_bytes = weights->manifest.arena_bytes - 1;
  EXPECT_THAT(FetchSnapshot(source, small),
              StatusIs(absl::StatusCode::kInvalidArgument));
  FetchOptions stranger = Options();
  stranger.caller.run_id = "another";
  EXPECT_THAT(FetchSnapshot(source, stranger),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

}  // namespace
}  // namespace cox
