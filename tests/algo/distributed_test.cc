// Losses, advantages and statistics must not depend on how rows are dealt out
// to ranks and micro-batches (docs/algorithms.md §1.1).

#include <algorithm>
#include <functional>
#include <memory>

#include "lib/algo/advantage.h"
#include "lib/algo/policy_loss.h"
#include "lib/algo/value_loss.h"
#include "lib/base/thread.h"
#include "lib/comm/inprocess.h"
#include "tests/algo/numeric.h"

namespace cox {
namespace {

constexpr int64_t kRows = 7;
constexpr int64_t kCols = 5;

class CommReducer final : public Reducer {
 public:
  explicit CommReducer(Collective* comm) : comm_(comm) {}
  int rank() const override { return comm_->rank(); }
  int world() const override { return comm_->world_size(); }
  absl::Status Sum(std::span<double> values) override {
    return comm_->AllReduceSum(values);
  }

 private:
  Collective* comm_;
};

void OnRanks(int world, const std::function<void(int, Reducer&)>& body) {
  auto group = MakeInProcessGroup(world);
  std::vector<Thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back("rank", [&, rank] {
      CommReducer reducer(group[rank].get());
      body(rank, reducer);
    });
  }
}

template <typename T>
std::vector<T> Take(const std::vector<T>& x, const std::vector<int64_t>& rows,
                    int64_t cols = kCols) {
  std::vector<T> out;
  for (const int64_t row : rows) {
    out.insert(out.end(), x.begin() + row * cols, x.begin() + (row + 1) * cols);
  }
  return out;
}

void Put(const Doubles& local, const std::vector<int64_t>& rows,
         Doubles* whole) {
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(local.begin() + i * kCols, kCols,
                whole->begin() + rows[i] * kCols);
  }
}

// A batch, and ways to split its rows; rank 2 owns nothing in the second.
class DistributedTest : public ::testing::TestWithParam<int> {
 protected:
  DistributedTest() {
    CounterRng rng(GetParam(), "distributed");
    mask_ = RandomMask(rng, kRows * kCols, .6);
    std::fill_n(mask_.begin() + kCols, kCols, uint8_t{0});  // row 1 is empty
    policy_ = Poisoned(Normals(rng, kRows * kCols, -2, .3), mask_);
    old_ = Poisoned(Normals(rng, kRows * kCols, -2, .3), mask_);
    behaviour_ = Poisoned(Normals(rng, kRows * kCols, -2, .3), mask_);
    advantages_ = Poisoned(Normals(rng, kRows * kCols), mask_);
  }

  using Split = std::vector<std::vector<std::vector<int64_t>>>;
  const std::vector<Split> splits_ = {
      {{{0, 1, 2, 3, 4, 5, 6}}},
      {{{6, 0}, {1}}, {{2}, {3}, {4, 5}}, {}},
      {{{1}}, {{0, 2, 3}, {4, 5, 6}}},
  };
  MaskVector mask_;
  Doubles policy_, old_, behaviour_, advantages_;
};

std::vector<int64_t> Flat(const std::vector<std::vector<int64_t>>& parts) {
  std::vector<int64_t> rows;
  for (const auto& part : parts) {
    rows.insert(rows.end(), part.begin(), part.end());
  }
  return rows;
}

Shape2 ShapeOf(const std::vector<int64_t>& rows) {
  return {static_cast<int64_t>(rows.size()), kCols};
}

TEST_P(DistributedTest, PolicyLossIsTheSameForAnySplit) {
  for (const LossAgg agg : {LossAgg::kTokenMean, LossAgg::kSeqMeanTokenMean,
                            LossAgg::kSeqMeanTokenSum, LossAgg::kConst}) {
    PolicyLossOptions options;
    options.agg = agg;
    options.is_mode = IsMode::kSeqTruncate;
    std::vector<double> losses;
    std::vector<Doubles> grads;
    std::vector<PolicyMetrics> metrics;
    for (const Split& split : splits_) {
      Doubles grad(kRows * kCols, -99.0);
      double loss = 0;
      PolicyMetrics measured;
      OnRanks(static_cast<int>(split.size()), [&](int rank, Reducer& all) {
        const std::vector<int64_t> own = Flat(split[rank]);
        ASSERT_OK_AND_ASSIGN(
            const LossNormalizer n,
            MakeNormalizer(ShapeOf(own), Take(mask_, own), 16, all));
        double sum[] = {0};
        PolicyLossSums sums;
        for (const std::vector<int64_t>& rows : split[rank]) {
          const Doubles policy = Take(policy_, rows);
          const Doubles old = Take(old_, rows);
          const Doubles advantages = Take(advantages_, rows);
          const Doubles behaviour = Take(behaviour_, rows);
          const MaskVector mask = Take(mask_, rows);
          ASSERT_OK_AND_ASSIGN(
              const auto part,
              PolicyLoss<double>(
                  {ShapeOf(rows), policy, old, advantages, mask, behaviour, {}},
                  options, n));
          sum[0] += part.loss;
          sums.Merge(part.sums);
          Put(part.grad, rows, &grad);
        }
        ASSERT_OK(all.Sum(sum));
        ASSERT_OK(sums.AllReduce(all));
        if (rank == 0) {
          loss = sum[0];
          measured = sums.Finish();
        }
      });
      losses.push_back(loss);
      grads.push_back(grad);
      metrics.push_back(measured);
    }
    for (size_t i = 1; i < losses.size(); ++i) {
      EXPECT_NEAR(losses[i], losses[0], kExact);
      EXPECT_THAT(grads[i], IsNear(grads[0], kExact));
      EXPECT_NEAR(metrics[i].ess, metrics[0].ess, kExact);
      EXPECT_EQ(metrics[i].w_max, metrics[0].w_max);
      EXPECT_NEAR(metrics[i].clipfrac, metrics[0].clipfrac, kExact);
    }
  }
}

TEST_P(DistributedTest, ValueMetricsAreTheSameForAnySplit) {
  std::vector<ValueMetrics> metrics;
  for (const Split& split : splits_) {
    ValueMetrics measured;
    OnRanks(static_cast<int>(split.size()), [&](int rank, Reducer& all) {
      const std::vector<int64_t> own = Flat(split[rank]);
      ASSERT_OK_AND_ASSIGN(
          const LossNormalizer n,
          MakeNormalizer(ShapeOf(own), Take(mask_, own), 0, all));
      ValueLossSums sums;
      for (const std::vector<int64_t>& rows : split[rank]) {
        const Doubles values = Take(policy_, rows);
        const Doubles old = Take(old_, rows);
        const Doubles returns = Take(behaviour_, rows);
        const MaskVector mask = Take(mask_, rows);
        ASSERT_OK_AND_ASSIGN(
            const auto part,
            ValueLoss<double>({ShapeOf(rows), values, old, returns, mask}, {},
                              n));
        sums.Merge(part.sums);
      }
      ASSERT_OK(sums.AllReduce(all));
      if (rank == 0) measured = sums.Finish();
    });
    metrics.push_back(measured);
  }
  for (size_t i = 1; i < metrics.size(); ++i) {
    EXPECT_NEAR(metrics[i].explained_var, metrics[0].explained_var, 1e-10);
    EXPECT_NEAR(metrics[i].error, metrics[0].error, kExact);
    EXPECT_NEAR(metrics[i].clipfrac, metrics[0].clipfrac, kExact);
  }
}

TEST_P(DistributedTest, AdvantagesAreTheSameForAnySplit) {
  const Doubles scores = {1, .5, 0, .25, 1, 1, .1};
  const std::vector<int64_t> group = {4, 9, 4, 9, 4, 9, 9};
  const MaskVector valid = {1, 1, 1, 0, 1, 1, 1};
  for (const GroupEstimator kind :
       {GroupEstimator::kRloo, GroupEstimator::kGrpo,
        GroupEstimator::kReinforcePp, GroupEstimator::kReinforcePpBaseline}) {
    std::vector<Doubles> results;
    for (const Split& split : splits_) {
      Doubles out(kRows * kCols, -99.0);
      OnRanks(static_cast<int>(split.size()), [&](int rank, Reducer& all) {
        const std::vector<int64_t> rows = Flat(split[rank]);
        const MaskVector mask = Take(mask_, rows);
        const Doubles local = Take(scores, rows, 1);
        const Doubles rewards = Take(advantages_, rows);
        ASSERT_OK_AND_ASSIGN(const Doubles gathered,
                             GatherRows(local, rows, kRows, all));
        GroupInput<double> input;
        input.kind = kind;
        input.shape = ShapeOf(rows);
        input.mask = mask;
        input.scores = gathered;
        input.group = group;
        input.valid = valid;
        input.rows = rows;
        input.token_rewards = rewards;
        ASSERT_OK_AND_ASSIGN(const Doubles advantages,
                             GroupAdvantages(input, all));
        Put(advantages, rows, &out);
      });
      results.push_back(out);
    }
    EXPECT_THAT(results[1], IsNear(results[0], 1e-11));
    EXPECT_THAT(results[2], IsNear(results[0], 1e-11));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, DistributedTest, ::testing::Values(1, 2, 3));

TEST(WhitenAcrossRanksTest, MatchesTheReference) {
  // Two ranks (1, 2, 3 | 10, 20): μ = 7.2, σ² = 50.96.
  const Doubles values[] = {{1, 2, 3}, {10, 20}};
  const Doubles expected[] = {{-.868514, -.728431, -.588348},
                              {.392232, 1.793062}};
  OnRanks(2, [&](int rank, Reducer& all) {
    const MaskVector mask(values[rank].size(), 1);
    ASSERT_OK_AND_ASSIGN(const auto w,
                         Whiten<double>(values[rank], mask, {}, all));
    EXPECT_NEAR(w.mean, 7.2, kPrinted);
    EXPECT_NEAR(w.var, 50.96, kPrinted);
    EXPECT_THAT(w.out, IsNear(expected[rank]));
  });
}

TEST(GatherTest, IsExactInAnyOrder) {
  const std::vector<int64_t> rows[] = {{2, 0}, {1}};
  const Doubles local[] = {{.1, .2}, {.3}};
  OnRanks(2, [&](int rank, Reducer& all) {
    ASSERT_OK_AND_ASSIGN(const Doubles gathered,
                         GatherRows(local[rank], rows[rank], 3, all));
    EXPECT_EQ(gathered, (Doubles{.2, .3, .1}));
    ASSERT_OK_AND_ASSIGN(const Doubles slots,
                         GatherSlots(std::span(local[rank]).first(1), all));
    EXPECT_EQ(slots, (Doubles{.1, .3}));
  });
}

}  // namespace
}  // namespace cox
