#include "learner/shards.h"

#include <algorithm>
#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "lib/base/thread.h"
#include "lib/comm/inprocess.h"
#include "lib/comm/tree_sum.h"
#include "lib/engine/fake.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::unique_ptr<TrainEngine> Engine() {
  std::unique_ptr<TrainEngine> engine = MakeFakeTrainEngine();
  EXPECT_OK(engine->Load(*FakeSnapshot(FakeModelConfig(4, 4), "policy", 1)));
  return engine;
}

// Numbers of very different size: every order of adding rounds differently.
void FillGradients(int64_t shard, std::span<float> gradients) {
  CounterRng rng(static_cast<uint64_t>(shard), "gradients");
  for (float& gradient : gradients) {
    const double unit = rng.NextUniform() - 0.5;
    gradient += static_cast<float>(unit * std::exp2(20 * rng.NextUniform()));
  }
}

// Gradient sum over `count` shards on `world` ranks.
std::vector<float> SumOnRanks(int64_t count, int world) {
  auto groups = MakeInProcessGroup(world);
  std::vector<std::vector<float>> sums(groups.size());
  {
    std::vector<Thread> threads;
    for (size_t rank = 0; rank < groups.size(); ++rank) {
      threads.emplace_back("rank", [&, rank] {
        auto shards = Shards::Create(count, *groups[rank]);
        ASSERT_OK(shards);
        const std::unique_ptr<TrainEngine> engine = Engine();
        // Left over from another step.
        std::fill(engine->Gradients().begin(), engine->Gradients().end(),
                  1e30f);
        for (int round = 0; round < 2; ++round) {
          ASSERT_OK(shards->Backward(
              *engine, [&](int64_t shard, size_t) -> absl::Status {
                FillGradients(shard, engine->Gradients());
                return absl::OkStatus();
              }));
        }
        sums[rank].assign(engine->Gradients().begin(),
                          engine->Gradients().end());
      });
    }
  }
  for (const auto& sum : sums) {
    EXPECT_EQ(sum, sums[0]);
  }
  return sums[0];
}

// All shards in one tree, as the definition says.
std::vector<float> TreeOf(int64_t count) {
  const size_t size = Engine()->Gradients().size();
  std::vector<std::vector<float>> gradients;
  std::vector<std::span<float>> parts;
  for (int64_t shard = 0; shard < count; ++shard) {
    FillGradients(shard, gradients.emplace_back(size, 0.0f));
  }
  for (auto& part : gradients) {
    parts.emplace_back(part);
  }
  TreeSum<float>(parts);
  return gradients[0];
}

TEST(ShardsTest, RanksThatDivideTheShardsAddInOneTree) {
  for (const int64_t count : {1, 2, 4, 8, 16}) {
    const std::vector<float> expected = TreeOf(count);
    for (int world = 1; world <= std::min<int64_t>(count, 8); world *= 2) {
      EXPECT_EQ(SumOnRanks(count, world), expected)
          << count << " shards, " << world << " ranks";
    }
  }
}

TEST(ShardsTest, OneRankMayOwnAnyNumberOfShards) {
  for (const int64_t count : {3, 5, 6, 7}) {
    EXPECT_EQ(SumOnRanks(count, 1), TreeOf(count)) << count;
  }
}

TEST(ShardsTest, DealsOutEveryElementOnceAndGathersInShardOrder) {
  for (const int world : {1, 2, 3, 4}) {
    auto groups = MakeInProcessGroup(world);
    std::vector<std::vector<int64_t>> gathered(groups.size());
    std::vector<Thread> threads;
    for (size_t rank = 0; rank < groups.size(); ++rank) {
      threads.emplace_back("rank", [&, rank] {
        const auto shards = Shards::Create(4, *groups[rank]);
        ASSERT_OK(shards);
        std::vector<int64_t> own;
        ASSERT_OK(shards->ForOwn([&](int64_t shard, size_t i) -> absl::Status {
          EXPECT_EQ(i, own.size());
          own.push_back(10 * shard);
          return absl::OkStatus();
        }));
        const auto all = shards->Gather(own);
        ASSERT_OK(all);
        gathered[rank] = *all;
      });
    }
    threads.clear();
    EXPECT_THAT(gathered, ::testing::Each(ElementsAre(0, 10, 20, 30)));
  }
  const auto group = MakeSingleRank();
  ASSERT_OK_AND_ASSIGN(const Shards shards, Shards::Create(4, *group));
  EXPECT_THAT(shards.Elements(10, 1), ElementsAre(1, 5, 9));
  EXPECT_THAT(shards.Elements(3, 3), IsEmpty());
}

TEST(ShardsTest, AnErrorOfAShardEndsThePass) {
  const auto group = MakeSingleRank();
  ASSERT_OK_AND_ASSIGN(Shards shards, Shards::Create(4, *group));
  const std::unique_ptr<TrainEngine> engine = Engine();
  int64_t calls = 0;
  EXPECT_THAT(shards.Backward(*engine,
                              [&](int64_t shard, size_t) -> absl::Status {
                                ++calls;
                                return shard == 1 ? absl::InternalError("no")
                                                  : absl::OkStatus();
                              }),
              testing::StatusIs(absl::StatusCode::kInternal));
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace cox
