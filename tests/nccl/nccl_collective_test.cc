#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "tests/nccl/nccl_world.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;

// Several buckets of 4,096 bytes, and not a multiple of one.
constexpr size_t kElements = 5 * 1024 + 7;
// Every stream operation up to this late: what is not ordered shows.
const std::map<std::string, std::string> kShaken = {
    {"COX_FAKE_CUDA_DELAY_US", "300"}, {"COX_FAKE_NCCL_LATE_US", "100"}};

class NcclWorldTest : public ::testing::TestWithParam<int> {};

TEST_P(NcclWorldTest, CollectivesAreExactOnAllRanks) {
  NcclWorld world(GetParam());
  NcclWorld::Settings settings;
  settings.env = kShaken;
  world.StartAll(settings, [&world](NcclCollective& comm) {
    return RunAllCollectives(
        comm, kElements,
        JoinPath(world.dir(), absl::StrCat("sum-", comm.rank())));
  });
  world.ExpectAllExit(0);
  EXPECT_EQ(world.Misuses(), "");
}

// NCCL adds in an order of its own; ours must come out all the same.
TEST_P(NcclWorldTest, TreeOrderDoesNotDependOnNcclsOwn) {
  NcclWorld world(GetParam());
  NcclWorld::Settings settings;
  settings.env = {{"COX_FAKE_NCCL_ORDER", "ring"}};
  world.StartAll(settings, [&world](NcclCollective& comm) {
    return RunAllCollectives(
        comm, kElements,
        JoinPath(world.dir(), absl::StrCat("sum-", comm.rank())));
  });
  world.ExpectAllExit(0);
  EXPECT_EQ(world.Misuses(), "");
}

TEST_P(NcclWorldTest, NcclsOwnOrderHasTheSameBitsOnAllRanks) {
  const int size = GetParam();
  NcclWorld world(size);
  NcclWorld::Settings settings;
  settings.tree_order = false;
  settings.env = {{"COX_FAKE_NCCL_ORDER", "ring"}};
  world.StartAll(settings, [&world, size](NcclCollective& comm) {
    std::vector<float> data = RankData(comm.rank(), kElements);
    CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>(data)));
    const std::vector<float> expected = TreeOfRanks(size, kElements);
    for (size_t i = 0; i < data.size(); ++i) {
      CHILD_CHECK(std::abs(data[i] - expected[i]) <= 1e-6f);
    }
    // The fake would hide nothing: with more than two terms it differs.
    CHILD_CHECK((data == expected) == (size <= 2));
    std::vector<float> block(kElements / static_cast<size_t>(size));
    const std::vector<float> raw =
        RankData(comm.rank(), block.size() * static_cast<size_t>(size));
    CHILD_CHECK_OK(comm.ReduceScatterSum(raw, block));
    CHILD_CHECK_OK(WriteFileDurably(
        Fs::Real(), JoinPath(world.dir(), absl::StrCat("sum-", comm.rank())),
        Sha256Hex(std::as_bytes(std::span(data)))));
    return 0;
  });
  world.ExpectAllExit(0);
  ASSERT_OK_AND_ASSIGN(const std::string first,
                       Fs::Real().ReadAll(JoinPath(world.dir(), "sum-0")));
  for (int rank = 1; rank < size; ++rank) {
    EXPECT_EQ(Fs::Real()
                  .ReadAll(JoinPath(world.dir(), absl::StrCat("sum-", rank)))
                  .value_or(""),
              first);
  }
  EXPECT_EQ(world.Misuses(), "");
}

// Device memory with values in it. REQUIRES: the caller frees it.
float* OnDevice(NcclCollective& comm, const std::vector<float>& values,
                CudaStream stream) {
  void* device = nullptr;
  void* pinned = nullptr;
  const size_t bytes = values.size() * sizeof(float);
  COX_CHECK(comm.cuda().malloc(&device, bytes) == CudaResult::kSuccess);
  COX_CHECK(comm.cuda().malloc_host(&pinned, bytes) == CudaResult::kSuccess);
  std::memcpy(pinned, values.data(), bytes);
  COX_CHECK(comm.cuda().memcpy_async(device, pinned, bytes,
                                     CudaCopy::kHostToDevice,
                                     stream) == CudaResult::kSuccess);
  return static_cast<float*>(device);  // `pinned` stays in use by the stream
}

std::vector<float> FromDevice(NcclCollective& comm, const float* device,
                              size_t n, CudaStream stream) {
  void* pinned = nullptr;
  COX_CHECK(comm.cuda().malloc_host(&pinned, n * sizeof(float)) ==
            CudaResult::kSuccess);
  COX_CHECK(comm.cuda().memcpy_async(pinned, device, n * sizeof(float),
                                     CudaCopy::kDeviceToHost,
                                     stream) == CudaResult::kSuccess);
  COX_CHECK(comm.cuda().stream_synchronize(stream) == CudaResult::kSuccess);
  const float* values = static_cast<const float*>(pinned);
  return {values, values + n};
}

// As a backward pass does: buckets of gradients become ready one after the
// other on the engine's stream; each is given away at once.
int ReduceWhileComputing(NcclCollective& comm) {
  COX_CHECK(comm.cuda().set_device(comm.device()) == CudaResult::kSuccess);
  CudaStream engine = nullptr;
  CudaStream reader = nullptr;
  CHILD_CHECK(comm.cuda().stream_create(&engine, kCudaStreamNonBlocking) ==
              CudaResult::kSuccess);
  CHILD_CHECK(comm.cuda().stream_create(&reader, kCudaStreamNonBlocking) ==
              CudaResult::kSuccess);
  constexpr size_t kBuckets = 4;
  constexpr size_t kSize = 300;
  const std::vector<float> own = RankData(comm.rank(), kBuckets * kSize);
  std::vector<float*> buckets;
  std::vector<int64_t> tickets;
  for (size_t b = 0; b < kBuckets; ++b) {
    const auto from = own.begin() + static_cast<std::ptrdiff_t>(b * kSize);
    buckets.push_back(
        OnDevice(comm, std::vector<float>(from, from + kSize), engine));
    const auto ticket =
        comm.Start({.out = buckets.back(), .count = kSize, .producer = engine});
    CHILD_CHECK_OK(ticket.status());
    tickets.push_back(*ticket);
  }
  const std::vector<float> expected =
      TreeOfRanks(comm.world_size(), kBuckets * kSize);
  for (size_t b = 0; b < kBuckets; ++b) {
    if (b % 2 == 0) {
      CHILD_CHECK_OK(comm.Wait(tickets[b]));
    } else {
      CHILD_CHECK_OK(comm.WaitOnStream(tickets[b], reader));
    }
    const std::vector<float> sum = FromDevice(comm, buckets[b], kSize, reader);
    CHILD_CHECK(
        std::equal(sum.begin(), sum.end(),
                   expected.begin() + static_cast<std::ptrdiff_t>(b * kSize)));
  }
  CHILD_CHECK_OK(comm.Wait(tickets.back()));
  CHILD_CHECK_OK(comm.Wait(tickets.front()));  // long done
  CHILD_CHECK(comm.Wait(99).code() == absl::StatusCode::kInvalidArgument);
  for (float* bucket : buckets) {
    CHILD_CHECK(comm.cuda().free(bucket) == CudaResult::kSuccess);
  }
  // The other kinds, once each.
  const auto world = static_cast<size_t>(comm.world_size());
  float* scratch = OnDevice(comm, RankData(comm.rank(), world * kSize), engine);
  float* part = OnDevice(comm, std::vector<float>(kSize), engine);
  CHILD_CHECK_OK(comm.Start({.kind = NcclCall::Kind::kReduceScatterSum,
                             .in = scratch,
                             .out = part,
                             .count = kSize,
                             .producer = engine})
                     .status());
  float* all = OnDevice(comm, std::vector<float>(world * kSize), engine);
  CHILD_CHECK_OK(comm.Start({.kind = NcclCall::Kind::kAllGather,
                             .in = part,
                             .out = all,
                             .count = kSize,
                             .producer = engine})
                     .status());
  const auto last = comm.Start({.kind = NcclCall::Kind::kBroadcast,
                                .out = scratch,
                                .count = world * kSize,
                                .producer = engine});
  CHILD_CHECK_OK(last.status());
  CHILD_CHECK_OK(comm.Wait(*last));
  // A scattered sum, gathered again, is the whole sum.
  CHILD_CHECK(FromDevice(comm, all, world * kSize, reader) ==
              TreeOfRanks(comm.world_size(), world * kSize));
  return 0;
}

TEST_P(NcclWorldTest, GradientBucketsAreReducedWhileOthersAreMade) {
  NcclWorld world(GetParam());
  NcclWorld::Settings settings;
  settings.env = kShaken;
  world.StartAll(settings, ReduceWhileComputing);
  world.ExpectAllExit(0);
  EXPECT_EQ(world.Misuses(), "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, NcclWorldTest, ::testing::Values(1, 2, 3, 4));

TEST(NcclOptionsTest, ImpossibleOptionsAreInvalid) {
  NcclOptions options;
  options.rank = 2;
  options.world_size = 2;
  EXPECT_THAT(MakeNccl(options), StatusIs(absl::StatusCode::kInvalidArgument));
  options.rank = 0;
  options.timeout = absl::InfiniteDuration();
  EXPECT_THAT(MakeNccl(options), StatusIs(absl::StatusCode::kInvalidArgument));
  options.timeout = absl::Seconds(1);
  options.bucket_bytes = 17;
  EXPECT_THAT(MakeNccl(options), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(NcclIdTest, TextSurvivesTheWayThroughTheCoordinator) {
  NcclUniqueId id = {};
  for (size_t i = 0; i < sizeof(id.bytes); ++i) {
    id.bytes[i] = static_cast<char>(i * 37);
  }
  ASSERT_OK_AND_ASSIGN(const NcclUniqueId back, ParseNcclId(NcclIdText(id)));
  EXPECT_EQ(std::memcmp(back.bytes, id.bytes, sizeof(id.bytes)), 0);
  EXPECT_THAT(ParseNcclId("127.0.0.1:4000"),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseNcclId("nccl:00"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace cox
