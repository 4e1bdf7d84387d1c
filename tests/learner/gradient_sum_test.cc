#include "learner/gradient_sum.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/batching.h"
#include "learner/shards.h"
#include "lib/base/rng.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"
#include "lib/comm/inprocess.h"
#include "lib/comm/tree_sum.h"
#include "lib/engine/fake.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using testing::StatusIs;

constexpr int64_t kShards = 4;
constexpr GradientSum::Options kSmall = {.bucket_floats = 40};

// A fake engine with a backward pass of our own: tensor by tensor, each told
// as soon as it is written.
class PassEngine {
 public:
  PassEngine() {
    EXPECT_OK(engine_->Load(*FakeSnapshot(FakeModelConfig(5, 8), "policy", 1)));
  }

  // Before each tensor but the first, `between` is called.
  void Pass(int64_t shard, const std::vector<size_t>& order,
            const std::function<void()>& between = nullptr) {
    bool first = true;
    for (size_t tensor : order) {
      if (!first && between) between();
      first = false;
      const TensorInfo& info = engine_->layout().tensors[tensor];
      CounterRng rng(static_cast<uint64_t>(shard), info.name);
      // Numbers of very different size: every order of adding rounds
      // differently.
      for (float& g : engine_->Gradients().subspan(
               info.offset / sizeof(float), info.bytes / sizeof(float))) {
        g += static_cast<float>((rng.NextUniform() - 0.5) *
                                std::exp2(20 * rng.NextUniform()));
      }
      if (ready) ready(tensor);
    }
  }
  // As a backward pass ends: the last tensors first.
  std::vector<size_t> Backwards() const {
    std::vector<size_t> order(engine_->layout().tensors.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
    return order;
  }
  TrainEngine& engine() { return *engine_; }
  std::vector<float> Gradients() const {
    return {engine_->Gradients().begin(), engine_->Gradients().end()};
  }

  TrainEngine::GradientReady ready;

 private:
  std::unique_ptr<TrainEngine> engine_ = MakeFakeTrainEngine();
};

// Counts the sums that are over.
class CountingGroup final : public Collective {
 public:
  explicit CountingGroup(Collective& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  absl::Status AllReduceSum(std::span<float> data) override {
    COX_RETURN_IF_ERROR(inner_.AllReduceSum(data));
    MutexLock lock(&mutex_);
    ++sums_;
    changed_.NotifyAll();
    return absl::OkStatus();
  }
  absl::Status AllReduceSum(std::span<double> data) override {
    return inner_.AllReduceSum(data);
  }
  absl::Status ReduceScatterSum(std::span<const float> in,
                                std::span<float> out) override {
    return inner_.ReduceScatterSum(in, out);
  }
  absl::Status Broadcast(std::span<std::byte> data, int root) override {
    return inner_.Broadcast(data, root);
  }
  absl::Status AllGather(std::span<const std::byte> in,
                         std::span<std::byte> out) override {
    return inner_.AllGather(in, out);
  }
  absl::Status Barrier() override { return inner_.Barrier(); }
  void Abort() override { inner_.Abort(); }

  bool AwaitSums(int sums) {
    MutexLock lock(&mutex_);
    return changed_.WaitFor(
        mutex_, absl::Seconds(30),
        [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return sums_ >= sums; });
  }
  int sums() {
    MutexLock lock(&mutex_);
    return sums_;
  }

 private:
  Collective& inner_;
  Mutex mutex_;
  CondVar changed_;
  int sums_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Runs `body` for each rank, as a thread, with 4 shards.
using RankBody = std::function<void(CountingGroup& group, Shards& shards)>;
void OnRanks(int world, const RankBody& body) {
  auto groups = MakeInProcessGroup(world);
  std::vector<Thread> threads;
  for (auto& inner : groups) {
    threads.emplace_back("rank", [&body, &inner] {
      CountingGroup group(*inner);
      auto shards = Shards::Create(kShards, group, kSmall);
      ASSERT_OK(shards);
      body(group, *shards);
    });
  }
}

// All shards in one tree, as docs/algorithms.md §1.1 says.
std::vector<float> Expected() {
  std::vector<std::vector<float>> all;
  for (int64_t shard = 0; shard < kShards; ++shard) {
    PassEngine engine;
    engine.engine().ZeroGradients();
    engine.Pass(shard, engine.Backwards());
    all.push_back(engine.Gradients());
  }
  std::vector<std::span<float>> parts(all.begin(), all.end());
  TreeSum<float>(parts);
  return all[0];
}

// An engine whose listener is the test's.
class Listening final : public TrainEngine {
 public:
  explicit Listening(PassEngine& passes) : passes_(passes) {}
  absl::Status Load(std::shared_ptr<const Snapshot> s) override {
    return inner().Load(std::move(s));
  }
  const ModelConfig& config() const override { return inner().config(); }
  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch, double t,
                                         bool entropy) override {
    return inner().Logprobs(batch, t, entropy);
  }
  absl::StatusOr<std::vector<float>> Values(const TokenBatch& batch) override {
    return inner().Values(batch);
  }
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch& batch) override {
    return inner().Scores(batch);
  }
  std::span<float> Parameters() override { return inner().Parameters(); }
  std::span<float> Gradients() override { return inner().Gradients(); }
  const Manifest& layout() const override { return inner().layout(); }
  void ZeroGradients() override { inner().ZeroGradients(); }
  absl::Status AccumulateLogprobs(const TokenBatch& batch, double t,
                                  bool entropy,
                                  const LogprobLoss& loss) override {
    return inner().AccumulateLogprobs(batch, t, entropy, loss);
  }
  absl::Status AccumulateValues(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    return inner().AccumulateValues(batch, loss);
  }
  absl::Status AccumulateScores(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    return inner().AccumulateScores(batch, loss);
  }
  void OnGradientReady(GradientReady ready) override {
    passes_.ready = std::move(ready);
  }

 private:
  TrainEngine& inner() const { return passes_.engine(); }
  PassEngine& passes_;
};

absl::Status Backward(
    Shards& shards, PassEngine& passes,
    const std::function<absl::Status(int64_t, size_t)>& body) {
  Listening engine(passes);
  return shards.Backward(engine, body);
}

TEST(GradientSumTest, BitsAreThoseOfOneSumInWhateverOrderTensorsAreReady) {
  const std::vector<float> expected = Expected();
  for (int world : {1, 2, 4}) {
    SCOPED_TRACE(world);
    OnRanks(world, [&](CountingGroup& group, Shards& shards) {
      PassEngine passes;
      for (uint64_t round = 0; round < 4; ++round) {
        ASSERT_OK(Backward(
            shards, passes, [&](int64_t shard, size_t) -> absl::Status {
              std::vector<size_t> order = passes.Backwards();
              if (round > 0) {  // another order on every rank
                CounterRng rng(round, absl::StrCat("order/", shard));
                for (size_t i = order.size(); i > 1; --i) {
                  std::swap(order[i - 1], order[rng.NextBelow(i)]);
                }
              }
              if (round == 3) passes.ready = nullptr;  // tells of none
              passes.Pass(shard, order);
              return absl::OkStatus();
            }));
        EXPECT_EQ(passes.Gradients(), expected);
      }
      EXPECT_EQ(group.sums() > 4, world > 1);
    });
  }
}

TEST(GradientSumTest, SumsAreOverBeforeThePassIs) {
  const std::vector<float> expected = Expected();
  for (int world : {2, 4}) {
    OnRanks(world, [&](CountingGroup& group, Shards& shards) {
      PassEngine passes;
      int tensors = 0;
      int waits = 0;
      ASSERT_OK(Backward(shards, passes,
                         [&](int64_t shard, size_t i) -> absl::Status {
                           if (static_cast<int64_t>(i) + 1 < shards.own()) {
                             passes.Pass(shard, passes.Backwards());
                             return absl::OkStatus();
                           }
                           passes.Pass(shard, passes.Backwards(), [&] {
                             // The pass goes on when a sum of what it has told
                             // is over.
                             if (++tensors % 4 != 0) return;
                             EXPECT_TRUE(group.AwaitSums(++waits));
                           });
                           return absl::OkStatus();
                         }));
      EXPECT_GE(waits, 2);
      EXPECT_EQ(passes.Gradients(), expected);
    });
  }
}

TEST(GradientSumTest, APoisonedGradientReachesAllRanks) {
  OnRanks(2, [&](CountingGroup& group, Shards& shards) {
    PassEngine passes;
    ASSERT_OK(
        Backward(shards, passes, [&](int64_t shard, size_t) -> absl::Status {
          passes.Pass(shard, passes.Backwards());
          if (shard == 3) return PoisonGradient(passes.engine());
          return absl::OkStatus();
        }));
    EXPECT_TRUE(std::isnan(passes.Gradients()[0])) << group.rank();
  });
}

TEST(GradientSumTest, AnErrorOfOneRankEndsTheOthersSums) {
  OnRanks(2, [&](CountingGroup& group, Shards& shards) {
    PassEngine passes;
    const absl::Status ended =
        Backward(shards, passes, [&](int64_t shard, size_t) -> absl::Status {
          passes.Pass(shard, passes.Backwards());
          return shard == 3 ? absl::InternalError("no") : absl::OkStatus();
        });
    EXPECT_THAT(ended,
                StatusIs(group.rank() == 1 ? absl::StatusCode::kInternal
                                           : absl::StatusCode::kAborted));
  });
}

TEST(GradientSumTest, AnAbortInTheMiddleOfAPassIsWhatTheSumReturns) {
  OnRanks(2, [&](CountingGroup& group, Shards& shards) {
    PassEngine passes;
    EXPECT_THAT(Backward(shards, passes,
                         [&](int64_t shard, size_t) -> absl::Status {
                           passes.Pass(shard, passes.Backwards(), [&] {
                             if (shard == 3) group.Abort();
                           });
                           return absl::OkStatus();
                         }),
                StatusIs(absl::StatusCode::kAborted));
  });
}

TEST(BackwardMicroBatchesTest, AnnouncesTheLastPassUnlessMoreFollow) {
  const auto engine = MakeFakeTrainEngine();
  ASSERT_OK(engine->Load(*FakeSnapshot(FakeModelConfig(5, 8), "policy", 1)));
  TokenBatch batch;
  batch.batch = 1;
  batch.length = 3;
  batch.ids = {1, 2, 3};
  batch.lengths = {3};
  batch.scored = {1, 1, 0};
  const std::vector<int64_t> rows = {0, 1, 2, 3, 4};
  int passes = 0, told = 0;
  const auto pass = [&](std::span<const int64_t>) {
    ++passes;
    EXPECT_EQ(told, 0);  // only by the last one
    return engine->AccumulateLogprobs(
        batch, 1.0, false, [](const LogprobOutput&, LogprobGradient*) {
          return absl::OkStatus();
        });
  };
  const auto listen = [&] {
    passes = told = 0;
    engine->OnGradientReady([&](size_t) { ++told; });
  };
  listen();
  ASSERT_OK(BackwardMicroBatches(*engine, rows, 2, pass));
  EXPECT_EQ(passes, 3);
  EXPECT_EQ(told, static_cast<int>(engine->layout().tensors.size()));
  told = 0;
  EXPECT_THAT(pass(rows), StatusIs(absl::StatusCode::kInternal));
  listen();
  ASSERT_OK(BackwardMicroBatches(*engine, rows, 2, pass, /*more=*/true));
  EXPECT_EQ(told, 0);
  ASSERT_OK(BackwardMicroBatches(*engine, rows, 0, pass));
  EXPECT_EQ(passes, 4);
  EXPECT_GT(told, 0);
}

}  // namespace
}  // namespace cox
