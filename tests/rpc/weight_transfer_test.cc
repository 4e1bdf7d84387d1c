#include <atomic>
#include <cstring>
#include <numeric>

#include "gtest/gtest.h"
#include "lib/base/hash.h"
#include "lib/rpc/chunk_codec.h"
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
                         .on_chunk =
                             [this, hook](v1::Chunk* chunk) {
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
  ExpectSame(
      FetchSnapshot(SourceOf(*weights, {peer.server->address()}), Options()),
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
  ExpectSame(
      FetchSnapshot(SourceOf(*weights, {peer.server->address()}), Options()),
      *weights);
}

TEST(WeightTransferTest, ASourceOfBadChunksIsQuarantined) {
  auto weights = MakeWeights(0);
  Peer bad([](v1::Chunk* chunk) {
    if (chunk->offset() == kChunkBytes) chunk->mutable_data()->at(0) ^= 1;
  });
  bad.store.Put(weights);
  EXPECT_THAT(
      FetchSnapshot(SourceOf(*weights, {bad.server->address()}), Options()),
      StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(std::count(bad.offsets.begin(), bad.offsets.end(), kChunkBytes), 3);
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
  EXPECT_THAT(
      FetchSnapshot(SourceOf(*weights, {liar.server->address()}), Options()),
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
  ExpectSame(FetchSnapshot(SourceOf(*weights, {gone, empty.server->address(),
                                               good.server->address()}),
                           Options()),
             *weights);
}

TEST(WeightTransferTest, GivesUpWithTheLastError) {
  auto weights = MakeWeights(0);
  Peer empty;
  FetchOptions options = Options();
  options.patience = absl::ZeroDuration();
  EXPECT_THAT(
      FetchSnapshot(SourceOf(*weights, {empty.server->address()}), options),
      StatusIs(absl::StatusCode::kUnavailable, HasSubstr("not held")));
  EXPECT_THAT(FetchSnapshot(SourceOf(*weights, {}), options),
              StatusIs(absl::StatusCode::kUnavailable));
  options = Options();
  options.sleep = [](absl::Duration) { return true; };
  EXPECT_THAT(
      FetchSnapshot(SourceOf(*weights, {empty.server->address()}), options),
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

// `bytes` as a message of pieces of `size` bytes.
grpc::ByteBuffer InPieces(const std::string& bytes, size_t size) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < bytes.size(); i += size) {
    slices.emplace_back(bytes.substr(i, size));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string Joined(const ChunkView& view) {
  std::string data;
  for (const std::string_view piece : view.pieces()) data += piece;
  return data;
}

TEST(ChunkCodecTest, SpeaksTheGeneratedCodesBytes) {
  auto weights = MakeWeights(0);
  for (const uint64_t begin : {uint64_t{0}, uint64_t{300}, uint64_t{70000}}) {
    const grpc::ByteBuffer encoded = EncodeChunk(weights, begin, begin + 1000);
    grpc::Slice slice;
    ASSERT_TRUE(encoded.DumpToSingleSlice(&slice).ok());
    v1::Chunk chunk;
    ASSERT_TRUE(
        chunk.ParseFromArray(slice.begin(), static_cast<int>(slice.size())));
    EXPECT_EQ(chunk.offset(), begin);
    EXPECT_EQ(chunk.data().size(), 1000u);
    EXPECT_EQ(chunk.xxh3(), Xxh3_128(chunk.data()));
    EXPECT_EQ(0, std::memcmp(chunk.data().data(),
                             weights->arena->bytes().data() + begin, 1000));
    // And back, however the bytes were cut on their way.
    for (const size_t size : {1u, 2u, 3u, 7u, 999u, 5000u}) {
      const auto view =
          ChunkView::Parse(InPieces(chunk.SerializeAsString(), size));
      ASSERT_TRUE(view.ok()) << view.status();
      EXPECT_EQ(view->offset(), begin);
      EXPECT_EQ(view->size(), 1000u);
      EXPECT_EQ(Joined(*view), chunk.data());
      EXPECT_EQ(view->xxh3(), chunk.xxh3());
    }
  }
}

TEST(ChunkCodecTest, SkipsUnknownFieldsAndRefusesCutMessages) {
  v1::Chunk chunk = MakeChunk(5,
                              "01234"
                              "12345");  // data from offset 5 on
  std::string bytes = chunk.SerializeAsString();
  // Fields 7 to 10 of a later contract: varint, 8 bytes, length, 4 bytes.
  const std::string later = std::string("\x38\x96\x01\x41", 4) + "8 bytes." +
                            std::string("\x4a\x02", 2) + "ab" + "\x55" + "4by.";
  const auto view = ChunkView::Parse(InPieces(later + bytes + later, 3));
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(Joined(*view), "12345");
  EXPECT_EQ(view->offset(), 5u);
  int refused = 0;
  for (size_t length = 1; length < bytes.size(); ++length) {
    const auto cut = ChunkView::Parse(InPieces(bytes.substr(0, length), 4));
    if (!cut.ok()) {
      EXPECT_THAT(cut, StatusIs(absl::StatusCode::kDataLoss));
      ++refused;
    }
  }
  // All but the borders between the three fields.
  EXPECT_EQ(refused, static_cast<int>(bytes.size()) - 3);
  EXPECT_THAT(ChunkView::Parse(InPieces("\x13", 1)),  // group: wire type 3
              StatusIs(absl::StatusCode::kDataLoss));
  chunk.set_data(std::string(kChunkBytes + 1, 'x'));
  EXPECT_THAT(ChunkView::Parse(InPieces(chunk.SerializeAsString(), 65536)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("data")));
}

// Above 8 MiB tensors are hashed while they arrive.
TEST(WeightTransferTest, LargeVersionsAreVerifiedBesideTheTransfer) {
  const Manifest layout =
      LayOut("policy", "{}", DType::kF32,
             {{"a", {1 << 20}}, {"b", {3}}, {"c", {(3 << 20) + 5}}});
  std::vector<float> values(layout.arena_bytes / 4);
  std::iota(values.begin(), values.end(), 1.0F);
  auto weights = *SnapshotFromFloats(layout, values);
  Peer liar([](v1::Chunk* chunk) {
    if (chunk->offset() != 9 * kChunkBytes) return;
    chunk->mutable_data()->at(9) ^= 1;
    chunk->set_xxh3(Xxh3_128(chunk->data()));
  });
  Peer good;
  liar.store.Put(weights);
  good.store.Put(weights);
  EXPECT_THAT(
      FetchSnapshot(SourceOf(*weights, {liar.server->address()}), Options()),
      StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor 'c'")));
  ExpectSame(FetchSnapshot(SourceOf(*weights, {liar.server->address(),
                                               good.server->address()}),
                           Options()),
             *weights);
  EXPECT_EQ(good.service.bytes_sent(), layout.arena_bytes);
}

}  // namespace
}  // namespace cox
