#include "lib/comm/inprocess.h"

#include <functional>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/thread.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Ranks = std::vector<std::unique_ptr<Collective>>;

void OnEveryRank(Ranks& ranks, const std::function<void(Collective&)>& body) {
  std::vector<Thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back("rank", [&body, &rank] { body(*rank); });
  }
}

TEST(SingleRankTest, EveryCallSucceedsAndChangesNothing) {
  const std::unique_ptr<Collective> comm = MakeSingleRank();
  EXPECT_EQ(comm->rank(), 0);
  EXPECT_EQ(comm->world_size(), 1);
  std::vector<float> data = {1, 2};
  EXPECT_OK(comm->AllReduceSum(std::span<float>(data)));
  EXPECT_OK(comm->Broadcast(std::as_writable_bytes(std::span(data)), 0));
  EXPECT_THAT(data, ElementsAre(1, 2));
  std::vector<float> out(2);
  EXPECT_OK(comm->AllGather(std::as_bytes(std::span(data)),
                            std::as_writable_bytes(std::span(out))));
  EXPECT_EQ(out, data);
  out = {0, 0};
  EXPECT_OK(comm->ReduceScatterSum(data, out));
  EXPECT_EQ(out, data);
  EXPECT_THAT(comm->ReduceScatterSum(data, std::span(out).first(1)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(comm->Barrier());
  comm->Abort();
  EXPECT_THAT(comm->Barrier(), StatusIs(absl::StatusCode::kAborted));
}

TEST(InProcessTest, SumsNeighboursFirst) {
  Ranks ranks = MakeInProcessGroup(4);
  std::vector<std::vector<float>> results(4);
  OnEveryRank(ranks, [&](Collective& comm) {
    const float values[] = {1e8f, 0.0f, 4.0f, 4.0f};
    std::vector<float> data = {values[comm.rank()]};
    ASSERT_OK(comm.AllReduceSum(std::span<float>(data)));
    results[static_cast<size_t>(comm.rank())] = data;
  });
  // Spacing of floats at 1e8 is 8: one by one the fours would be lost.
  EXPECT_THAT(results, Each(ElementsAre(1e8f + 8.0f)));
}

TEST(InProcessTest, AddsTheOddRankLast) {
  Ranks ranks = MakeInProcessGroup(3);
  std::vector<std::vector<float>> results(3);
  std::vector<std::vector<double>> doubles(3);
  OnEveryRank(ranks, [&](Collective& comm) {
    // (1e8 + 1) + -1e8 is 0 in float32; any order with 1 last gives 1.
    const float values[] = {1e8f, 1.0f, -1e8f};
    std::vector<float> data = {values[comm.rank()], 1.0f};
    std::vector<double> wide = {values[comm.rank()]};
    for (int round = 0; round < 100; ++round) {
      data = {values[comm.rank()], 1.0f};
      ASSERT_OK(comm.AllReduceSum(std::span<float>(data)));
    }
    ASSERT_OK(comm.AllReduceSum(std::span<double>(wide)));
    results[static_cast<size_t>(comm.rank())] = data;
    doubles[static_cast<size_t>(comm.rank())] = wide;
  });
  EXPECT_THAT(results, Each(ElementsAre(0.0f, 3.0f)));
  EXPECT_THAT(doubles, Each(ElementsAre(1.0)));
}

TEST(InProcessTest, ScattersTheSumThatAllReduceLeaves) {
  Ranks ranks = MakeInProcessGroup(3);
  std::vector<std::vector<float>> results(3);
  OnEveryRank(ranks, [&](Collective& comm) {
    // Block r of each rank is its value times r + 1: the sum of 1e8, 1, -1e8
    // is 0 in tree order (AddsTheOddRankLast).
    const float values[] = {1e8f, 1.0f, -1e8f};
    const float mine = values[comm.rank()];
    const std::vector<float> in = {mine, 1, 2 * mine, 2, 3 * mine, 3};
    std::vector<float> out(2);
    ASSERT_OK(comm.ReduceScatterSum(in, out));
    results[static_cast<size_t>(comm.rank())] = out;
  });
  EXPECT_THAT(results, ElementsAre(ElementsAre(0, 3), ElementsAre(0, 6),
                                   ElementsAre(0, 9)));
}

TEST(InProcessTest, BroadcastsAndGathersInRankOrder) {
  Ranks ranks = MakeInProcessGroup(3);
  std::vector<std::vector<int>> sent(3);
  std::vector<std::vector<int>> gathered(3);
  OnEveryRank(ranks, [&](Collective& comm) {
    std::vector<int> data = {comm.rank(), 10 * comm.rank()};
    std::vector<int> all(6);
    ASSERT_OK(comm.AllGather(std::as_bytes(std::span(data)),
                             std::as_writable_bytes(std::span(all))));
    ASSERT_OK(comm.Broadcast(std::as_writable_bytes(std::span(data)), 2));
    ASSERT_OK(comm.Barrier());
    sent[static_cast<size_t>(comm.rank())] = data;
    gathered[static_cast<size_t>(comm.rank())] = all;
  });
  EXPECT_THAT(sent, Each(ElementsAre(2, 20)));
  EXPECT_THAT(gathered, Each(ElementsAre(0, 0, 1, 10, 2, 20)));
}

TEST(InProcessTest, MissingRankIsADeadlineAndKillsTheGroup) {
  Ranks ranks = MakeInProcessGroup(2, absl::Milliseconds(5));
  EXPECT_THAT(ranks[0]->Barrier(), StatusIs(absl::StatusCode::kDeadlineExceeded,
                                            HasSubstr("1 of 2 ranks")));
  EXPECT_THAT(ranks[1]->Barrier(),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(InProcessTest, LostRankAbortsTheOthers) {
  Ranks ranks = MakeInProcessGroup(2);
  Thread waiter("waiter", [&] {
    EXPECT_THAT(ranks[0]->Barrier(),
                StatusIs(absl::StatusCode::kAborted, HasSubstr("rank 1")));
  });
  ranks[1].reset();
}

TEST(InProcessTest, AbortWakesAWaiter) {
  Ranks ranks = MakeInProcessGroup(2);
  Thread waiter("waiter", [&] {
    EXPECT_THAT(ranks[0]->Barrier(), StatusIs(absl::StatusCode::kAborted));
  });
  ranks[0]->Abort();
  waiter.Join();
  EXPECT_THAT(ranks[1]->Barrier(), StatusIs(absl::StatusCode::kAborted));
}

TEST(InProcessTest, DifferentCallsAreAnError) {
  Ranks ranks = MakeInProcessGroup(2);
  OnEveryRank(ranks, [](Collective& comm) {
    std::vector<float> data(comm.rank() == 0 ? 2 : 3);
    EXPECT_THAT(comm.AllReduceSum(std::span<float>(data)),
                StatusIs(absl::StatusCode::kInternal));
  });
}

TEST(InProcessTest, WrongArgumentsAreRejectedAtOnce) {
  Ranks ranks = MakeInProcessGroup(2);
  std::vector<std::byte> bytes(3);
  EXPECT_THAT(ranks[0]->Broadcast(bytes, 2),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ranks[0]->AllGather(bytes, bytes),
              StatusIs(absl::StatusCode::kInvalidArgument));
  std::vector<float> floats(3);
  EXPECT_THAT(ranks[0]->ReduceScatterSum(floats, floats),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace cox
