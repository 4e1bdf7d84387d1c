#include "learner/lm_trainer.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/engine/fake.h"
#include "tests/learner/learner_testing.h"
#include "tests/learner/registered.h"

namespace cox {
namespace {

using testing::RankParts;
using testing::RelativeDistance;
using testing::RunOutcome;
using testing::RunSteps;

// Sequences of several lengths; the answer to prompt p is p + 1, p + 2, ...
std::vector<Sequence> Examples() {
  std::vector<Sequence> examples;
  for (int32_t p = 0; p < 7; ++p) {
    Sequence sequence;
    sequence.ids = {p, p, (p + 1) % 8};
    for (int32_t k = 0; k < p % 3; ++k) {
      sequence.ids.push_back((p + 2 + k) % 8);
    }
    sequence.first_target = 2;
    examples.push_back(sequence);
  }
  return examples;
}

testing::MakeRank MakeLm(int64_t batch, int64_t micro_batch,
                         int64_t total_steps) {
  return [=](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    parts.policy = MakeFakeTrainEngine();
    COX_ASSIGN_OR_RETURN(auto snapshot,
                         FakeSnapshot(FakeModelConfig(8, 8), "policy", 1));
    COX_RETURN_IF_ERROR(parts.policy->Load(snapshot));
    parts.source = MakeExampleSource(Examples(), 5, "sft/0");
    LmOptions options;
    options.batch = batch;
    options.micro_batch = micro_batch;
    options.total_steps = total_steps;
    options.optimizer = testing::TestOptimizer(0.02);
    options.optimizer.adam.weight_decay = 0.1;
    COX_ASSIGN_OR_RETURN(parts.trainer,
                         MakeLmTrainer(options, *parts.policy, group,
                                       *parts.source, Examples()));
    return parts;
  };
}

BatchInput NoInput(int64_t) { return {}; }

TEST(LmTrainerTest, RanksDoNotChangeABit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, MakeLm(5, 2, 3), NoInput, 1, 3));
  for (const int world : {2, 4}) {
    ASSERT_OK_AND_ASSIGN(const RunOutcome many,
                         RunSteps(world, MakeLm(5, 2, 3), NoInput, 1, 3));
    testing::ExpectSameBits(many, one);
  }
}

TEST(LmTrainerTest, OtherSumsChangeNoMoreThanRounding) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, MakeLm(5, 0, 3), NoInput, 1, 3));
  // Three ranks own no subtrees of the shards.
  for (const auto& [world, micro] : {std::pair{3, 1}, {2, 2}}) {
    ASSERT_OK_AND_ASSIGN(const RunOutcome many,
                         RunSteps(world, MakeLm(5, micro, 3), NoInput, 1, 3));
    EXPECT_LE(RelativeDistance(many.policy, one.policy), 1e-6) << world;
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(many.results[i].batch_sha256, one.results[i].batch_sha256);
      EXPECT_NEAR(many.results[i].metrics.at("loss/lm"),
                  one.results[i].metrics.at("loss/lm"), 1e-6);
    }
  }
}

// Notes what it was asked for.
class NotingSource final : public LmSource {
 public:
  explicit NotingSource(std::vector<int64_t>& positions)
      : positions_(positions) {}
  Sequence At(int64_t position) const override {
    positions_.push_back(position);
    return Examples()[static_cast<size_t>(position % 7)];
  }

 private:
  std::vector<int64_t>& positions_;
};

TEST(LmTrainerTest, StepsTakeTheDataAndTheScheduleFromTheirBeginning) {
  std::vector<int64_t> positions;
  const auto make = [&](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    parts.policy = MakeFakeTrainEngine();
    COX_ASSIGN_OR_RETURN(auto snapshot,
                         FakeSnapshot(FakeModelConfig(8, 8), "policy", 1));
    COX_RETURN_IF_ERROR(parts.policy->Load(snapshot));
    parts.source = std::make_unique<NotingSource>(positions);
    LmOptions options;
    options.batch = 3;
    options.total_steps = 4;
    options.optimizer = testing::TestOptimizer(0.5);
    options.optimizer.schedule.kind = LrKind::kLinear;
    options.optimizer.schedule.total = 4;
    COX_ASSIGN_OR_RETURN(
        parts.trainer,
        MakeLmTrainer(options, *parts.policy, group, *parts.source, {}));
    return parts;
  };
  ASSERT_OK_AND_ASSIGN(const RunOutcome run, RunSteps(1, make, NoInput, 1, 4));
  EXPECT_THAT(positions,
              ::testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
  for (size_t i = 0; i < 4; ++i) {
    // Falls from the peak by a quarter a step.
    EXPECT_NEAR(run.results[i].metrics.at("lr"),
                0.5 * (1 - 0.25 * static_cast<double>(i)), 1e-12);
  }
}

TEST(LmTrainerTest, RefusesMoreRanksThanShards) {
  EXPECT_THAT(
      RunSteps(5, MakeLm(5, 0, 3), NoInput, 1, 1),
      testing::StatusIs(absl::StatusCode::kInvalidArgument,
                        ::testing::HasSubstr("numerics.shards: expected at "
                                             "least the number of learner "
                                             "ranks, 5, found 4")));
}

TEST(LmTrainerTest, AResumedRunIsTheContinuousOneBitForBit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome whole,
                       RunSteps(2, MakeLm(5, 2, 6), NoInput, 1, 6));
  ASSERT_OK_AND_ASSIGN(const RunOutcome half,
                       RunSteps(2, MakeLm(5, 2, 6), NoInput, 1, 3));
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome rest,
      RunSteps(2, MakeLm(5, 2, 6), NoInput, 4, 6, testing::RestoreFrom(half)));
  EXPECT_EQ(rest.weight_hash, whole.weight_hash);
  EXPECT_EQ(rest.state, whole.state);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(rest.results[i].metrics, whole.results[i + 3].metrics);
    EXPECT_EQ(rest.results[i].batch_sha256, whole.results[i + 3].batch_sha256);
  }
}

TEST(LmTrainerTest, MeasuresHeldOutTextAtTheFirstAndTheLastStep) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome run,
                       RunSteps(1, MakeLm(7, 0, 40), NoInput, 1, 40));
  EXPECT_EQ(run.results[10].metrics.count("text/heldout_nll"), 0u);
  const double first = run.results.front().metrics.at("text/heldout_nll");
  const double last = run.results.back().metrics.at("text/heldout_nll");
  // Before training close to uniform over 8 tokens: ln 8.
  EXPECT_NEAR(first, std::log(8.0), 0.05);
  EXPECT_LT(last, 1.2);
  EXPECT_NEAR(run.results.back().metrics.at("text/heldout_ppl"), std::exp(last),
              1e-9);
  testing::ExpectRegistered(run.results);
}

TEST(LmTrainerTest, TrainsOnTheCompletionOnly) {
  const std::vector<SftExample> examples = {{{1, 2, 3, 4}, 2}};
  EXPECT_EQ(SftSequences(examples, /*prompt_loss=*/false)[0].first_target, 2);
  EXPECT_EQ(SftSequences(examples, /*prompt_loss=*/true)[0].first_target, 1);
  // An encoder-decoder's example: start token and context 9, 5.
  const Sequence encdec =
      SftSequences({{{9, 5, 3, 4}, 2, {1, 2}}}, /*prompt_loss=*/false)[0];
  EXPECT_THAT(encdec.instruction_ids, ::testing::ElementsAre(1, 2));
  EXPECT_THAT(encdec.ids, ::testing::ElementsAre(9, 5, 3, 4));
  EXPECT_EQ(encdec.targets(), 2);
}

TEST(LmTrainerTest, ANonFiniteOutputOfOneRankSkipsTheStepOnAll) {
  const auto make = MakeLm(4, 0, 2);
  const auto poisoned = [&](Collective& group) -> absl::StatusOr<RankParts> {
    COX_ASSIGN_OR_RETURN(RankParts parts, make(group));
    if (group.rank() == 1) {
      parts.policy->Parameters()[0] = std::numeric_limits<float>::infinity();
    }
    return parts;
  };
  std::vector<std::unique_ptr<Collective>> groups = MakeInProcessGroup(2);
  std::vector<bool> skipped(2);
  std::vector<Thread> threads;
  for (size_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back("rank", [&, rank] {
      auto parts = poisoned(*groups[rank]);
      ASSERT_OK(parts);
      const auto result = parts->trainer->Step(1, {});
      // Held-out text is measured first and stays finite or not; the update
      // is what must be skipped together.
      ASSERT_OK(result);
      EXPECT_TRUE(result->skipped);
    });
  }
}

TEST(LmTrainerTest, RefusesAStepOutOfOrder) {
  std::unique_ptr<Collective> group = MakeSingleRank();
  ASSERT_OK_AND_ASSIGN(RankParts parts, MakeLm(2, 0, 5)(*group));
  EXPECT_THAT(parts.trainer->Step(2, {}),
              testing::StatusIs(absl::StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace cox
