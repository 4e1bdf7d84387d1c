// One version of the weights from a root to members, each a process of its own
// on the fake NCCL: the bits that arrive, and what every fault of one process
// leaves to the others.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/clock.h"
#include "lib/base/process.h"
#include "lib/base/thread.h"
#include "lib/comm/weight_group.h"
#include "tests/nccl/nccl_world.h"

namespace cox {
namespace {

constexpr int kEndedAborted = 10;
constexpr int kEndedLate = 11;
constexpr int kEndedDamaged = 12;
constexpr int kEndedStopped = 13;
constexpr int kEndedOtherwise = 14;
constexpr int kOvertime = 15;

// What the deadline may be overrun by on a loaded machine.
constexpr absl::Duration kSlack = absl::Seconds(5);

// `floats` in two tensors.
std::shared_ptr<const Snapshot> MakeWeights(int64_t floats) {
  const Manifest layout =
      LayOut("policy", "{}", DType::kF32,
             {{"body.weight", {floats - floats / 3}}, {"head", {floats / 3}}});
  std::vector<float> values(layout.arena_bytes / 4);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = 0.25f * static_cast<float>(i % 65521);
  }
  return *SnapshotFromFloats(layout, values);
}

WeightGroupOptions GroupOf(const NcclOptions& options) {
  WeightGroupOptions group;
  group.id = options.id;
  group.rank = options.rank;
  group.world_size = options.world_size;
  group.name = WeightGroupName("run", 3, "hash", 1);
  group.timeout = options.timeout;
  group.bucket_bytes = options.bucket_bytes;
  return group;
}

int CodeOf(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  if (absl::IsAborted(status)) return kEndedAborted;
  if (absl::IsDeadlineExceeded(status)) return kEndedLate;
  if (absl::IsDataLoss(status)) return kEndedDamaged;
  return absl::IsCancelled(status) ? kEndedStopped : kEndedOtherwise;
}

// Sends on rank 0 and receives on the others; the exit code says how it went.
int Transfer(const WeightGroupOptions& group, const Snapshot& sent,
             const Snapshot& wanted) {
  if (group.rank == 0) return CodeOf(SendWeights(group, sent));
  const auto got = ReceiveWeights(group, wanted.manifest, wanted.content_hash,
                                  uint64_t{1} << 30);
  if (!got.ok()) return CodeOf(got.status());
  CHILD_CHECK((*got)->content_hash == wanted.content_hash);
  CHILD_CHECK(
      std::ranges::equal((*got)->arena->bytes(), wanted.arena->bytes()));
  return 0;
}

class NcclWeightGroupTest : public ::testing::TestWithParam<int> {};

TEST_P(NcclWeightGroupTest, MembersGetTheSameBits) {
  const int size = GetParam() + 1;
  // Many small buckets, and few over the size from which tensors are hashed
  // while they arrive.
  for (const auto& [floats, bucket] :
       {std::pair<int64_t, size_t>{30011, 4096}, {3'000'001, 1 << 20}}) {
    const auto weights = MakeWeights(floats);
    NcclWorld world(size);
    for (int rank = 0; rank < size; ++rank) {
      world.StartUnmet(rank, {.bucket_bytes = bucket},
                       [&](const NcclOptions& options) {
                         return Transfer(GroupOf(options), *weights, *weights);
                       });
    }
    world.ExpectAllExit(0);
    EXPECT_EQ(world.Misuses(), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Members, NcclWeightGroupTest,
                         ::testing::Values(1, 2, 3));

struct Case {
  const char* name;
  const char* fault;
  bool silent;
  bool killed;  // the rank of the fault does not end by itself
  int victim;   // rank
};

constexpr Case kCases[] = {
    {"MemberKilled", "kill", false, true, 2},
    {"MemberKilledHalfway", "halfway", false, true, 2},
    {"MemberKilledUnnoticed", "kill", true, true, 2},
    {"MemberHangs", "hang", false, false, 2},
    {"MemberHangsUnnoticed", "hang", true, false, 1},
    {"MemberFails", "error", false, false, 1},
    {"MemberFailsLater", "async", false, false, 2},
    {"RootKilled", "kill", false, true, 0},
    {"RootHangs", "hang", true, false, 0},
};

class NcclWeightFaultTest : public ::testing::TestWithParam<Case> {};

TEST_P(NcclWeightFaultTest, EndsTheGroupOnEverySideInTime) {
  const Case& fault = GetParam();
  const bool late = fault.silent || std::string(fault.fault) == "hang";
  const absl::Duration timeout = late ? absl::Seconds(1) : kSoon;
  NcclWorld::Settings settings;
  settings.timeout = timeout;
  // Call 1 is the comparison of names, then a call for each bucket.
  settings.env["COX_FAKE_NCCL"] =
      absl::StrCat("rank=", fault.victim, " call=5 fault=", fault.fault);
  if (fault.silent) settings.env["COX_FAKE_NCCL_SILENT"] = "1";
  const auto weights = MakeWeights(30011);
  NcclWorld world(3);
  for (int rank = 0; rank < 3; ++rank) {
    world.StartUnmet(rank, settings, [&](const NcclOptions& options) {
      const MonoTime start = Clock::Real().Now();
      const int code = Transfer(GroupOf(options), *weights, *weights);
      // The meeting and the transfer have a deadline each.
      const absl::Duration limit = late ? 2 * timeout + kSlack : kSoon;
      return Clock::Real().Now() - start > limit ? kOvertime : code;
    });
  }
  for (int rank = 0; rank < 3; ++rank) {
    if (rank == fault.victim && fault.killed) {
      world.ExpectKilled(rank);
      continue;
    }
    const ChildExit exit = WaitChild(world.pid(rank), kSoon);
    ASSERT_TRUE(exit.exited) << "rank " << rank << " hangs";
    EXPECT_THAT(exit.code, ::testing::AnyOf(kEndedAborted, kEndedLate))
        << "rank " << rank;
  }
  EXPECT_EQ(world.Misuses(), "");
}

INSTANTIATE_TEST_SUITE_P(Faults, NcclWeightFaultTest,
                         ::testing::ValuesIn(kCases),
                         [](const auto& test) { return test.param.name; });

TEST(NcclWeightsTest, AFlippedBitIsNamedByItsTensor) {
  const auto weights = MakeWeights(30011);
  auto arena = std::make_shared<Arena>(weights->manifest.arena_bytes);
  std::ranges::copy(weights->arena->bytes(), arena->bytes().begin());
  // In the second tensor.
  arena->bytes()[static_cast<size_t>(weights->manifest.tensors[1].offset) +
                 77] ^= std::byte{1};
  const Snapshot damaged = {weights->manifest, weights->content_hash, arena};
  NcclWorld world(3);
  for (int rank = 0; rank < 3; ++rank) {
    world.StartUnmet(rank, {}, [&](const NcclOptions& options) {
      const WeightGroupOptions group = GroupOf(options);
      if (group.rank == 0) return CodeOf(SendWeights(group, damaged));
      const absl::Status status =
          ReceiveWeights(group, weights->manifest, weights->content_hash,
                         uint64_t{1} << 30)
              .status();
      CHILD_CHECK(status.message().find("head") != std::string::npos);
      CHILD_CHECK(status.message().find("body.weight") == std::string::npos);
      return CodeOf(status);
    });
  }
  world.ExpectExit(0, 0);
  world.ExpectExit(1, kEndedDamaged);
  world.ExpectExit(2, kEndedDamaged);
}

TEST(NcclWeightsTest, AMemberOfAnOlderGenerationMeetsNobody) {
  const auto weights = MakeWeights(3000);
  NcclWorld world(3);
  for (int rank = 0; rank < 3; ++rank) {
    world.StartUnmet(rank, {}, [&](const NcclOptions& options) {
      WeightGroupOptions group = GroupOf(options);
      if (rank == 2) group.name = WeightGroupName("run", 2, "hash", 1);
      return Transfer(group, *weights, *weights);
    });
  }
  world.ExpectAllExit(kEndedAborted);
}

TEST(NcclWeightsTest, AManifestThatIsNotTheVersionsIsRefused) {
  const auto weights = MakeWeights(3000);
  WeightGroupOptions group;
  group.rank = 1;
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveWeights(group, weights->manifest,
                                                     std::string(64, '0'),
                                                     uint64_t{1} << 30)
                                          .status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      ReceiveWeights(group, weights->manifest, weights->content_hash, 100)
          .status()));
}

// Who leaves does not wait for a member that never comes.
TEST(NcclWeightsTest, AProcessThatLeavesEndsItsWaitAtOnce) {
  const auto weights = MakeWeights(3000);
  NcclWorld world(2);
  world.StartUnmet(0, {}, [&](const NcclOptions& options) {
    Notification stop;
    WeightGroupOptions group = GroupOf(options);
    group.stop = &stop;
    const Thread leaving("leaving", [&stop] {
      absl::SleepFor(absl::Milliseconds(100));
      stop.Notify();
    });
    return CodeOf(SendWeights(group, *weights));
  });
  world.StartUnmet(1, {}, [](const NcclOptions&) { return 0; });
  world.ExpectExit(0, kEndedStopped);
  world.ExpectExit(1, 0);
}

// The root sends to a member that met it and then stopped, while it sums with
// the other learner rank: no sum fails or waits for the member.
TEST(NcclWeightsTest, AMemberThatHangsCannotHoldTheLearnersUp) {
  const auto weights = MakeWeights(30011);
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  NcclWorld world(3);
  const auto learner = [&](const NcclOptions& options) {
    NcclOptions own = options;
    own.world_size = 2;
    own.timeout = kSoon;
    own.group = "learners";
    if (own.rank == 0) {
      const auto id = NewNcclId();
      CHILD_CHECK_OK(id.status());
      own.id = *id;
      CHILD_CHECK(write(pipe_fds[1], own.id.bytes, sizeof(own.id.bytes)) ==
                  static_cast<ssize_t>(sizeof(own.id.bytes)));
    } else {
      CHILD_CHECK(read(pipe_fds[0], own.id.bytes, sizeof(own.id.bytes)) ==
                  static_cast<ssize_t>(sizeof(own.id.bytes)));
    }
    auto learners = MakeNccl(own);
    CHILD_CHECK_OK(learners.status());
    Notification sent;
    absl::Status status;
    Thread sender("sender", [&] {
      if (own.rank == 0) {
        WeightGroupOptions group = GroupOf(options);
        group.world_size = 2;
        status = SendWeights(group, *weights);
      }
      sent.Notify();
    });
    // Until the group has ended, and once more.
    for (bool more = true; more;) {
      more = !sent.HasBeenNotified();
      float going = own.rank == 0 && more ? 1 : 0;
      const MonoTime start = Clock::Real().Now();
      CHILD_CHECK_OK((*learners)->AllReduceSum(std::span<float>(&going, 1)));
      CHILD_CHECK(Clock::Real().Now() - start < absl::Milliseconds(1500));
      more = going > 0;
    }
    sender.Join();
    return own.rank == 0 ? CodeOf(status) : 0;
  };
  const NcclWorld::Settings settings = {.timeout = absl::Seconds(2),
                                        .env = {{"COX_FAKE_NCCL_SILENT", "1"}}};
  world.StartUnmet(0, settings, learner);
  world.StartUnmet(1, settings, learner);
  world.StartUnmet(2, settings, [](const NcclOptions& options) {
    NcclOptions member = options;
    member.rank = 1;
    member.world_size = 2;
    member.group = GroupOf(options).name;
    member.tree_order = false;
    auto met = MakeNccl(member);
    CHILD_CHECK_OK(met.status());
    pause();
    return 0;
  });
  world.ExpectExit(0, kEndedLate);
  world.ExpectExit(1, 0);
  close(pipe_fds[0]);
  close(pipe_fds[1]);
}

}  // namespace
}  // namespace cox
