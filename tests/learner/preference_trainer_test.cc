#include "learner/preference_trainer.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/best_of.h"
#include "lib/engine/fake.h"
#include "tests/learner/learner_testing.h"
#include "tests/learner/registered.h"

namespace cox {
namespace {

using ::testing::HasSubstr;
using testing::RankParts;
using testing::RunOutcome;
using testing::RunSteps;
using testing::StatusIsWith;

constexpr int64_t kSteps = 6;

std::shared_ptr<const Snapshot> StartPolicy() {
  return *FakeSnapshot(FakeModelConfig(8, 8), "policy", 2);
}

Sequence MakeSequence(std::vector<int32_t> ids) {
  Sequence sequence;
  sequence.ids = std::move(ids);
  return sequence;
}

// Answers that end in a high token are better; row 4 is all ties.
std::vector<Comparison> Comparisons() {
  std::vector<Comparison> comparisons;
  for (int32_t p = 0; p < 9; ++p) {
    Comparison& comparison = comparisons.emplace_back();
    const int32_t count = 2 + p % 3;
    for (int32_t k = 0; k < count; ++k) {
      Sequence sequence;
      sequence.ids = {p % 4, (p + 1) % 4, 4 + k};
      if (p % 2 == 0) sequence.ids.push_back(4 + k);
      sequence.first_target = 2;
      comparison.completions.push_back(sequence);
      comparison.ranks.push_back(p == 4 ? 1 : count - k);
    }
  }
  return comparisons;
}

std::vector<LabelledRow> Labelled() {
  std::vector<LabelledRow> rows;
  for (const Comparison& comparison : Comparisons()) {
    rows.push_back(LabelsOf(comparison));
  }
  return rows;
}

struct TestCase {
  std::string name;
  bool kto = false;
  PreferenceOptions dpo = {};
  int64_t micro_batch = 0;
};

testing::MakeRank Make(const TestCase& test, int64_t total_steps = kSteps) {
  return [=](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    parts.policy = MakeFakeTrainEngine();
    COX_RETURN_IF_ERROR(parts.policy->Load(StartPolicy()));
    const std::unique_ptr<TrainEngine> reference = MakeFakeTrainEngine();
    COX_RETURN_IF_ERROR(reference->Load(StartPolicy()));
    PreferenceTrainOptions options;
    options.seed = 3;
    options.batch = 4;
    options.micro_batch = test.micro_batch;
    options.total_steps = total_steps;
    options.optimizer = testing::TestOptimizer(0.05);
    PreferenceParts given = {.policy = parts.policy.get(),
                             .reference = reference.get(),
                             .group = &group};
    Sequence text;
    text.ids = {1, 2, 3, 1};
    given.text = {text};
    if (test.kto) {
      COX_ASSIGN_OR_RETURN(parts.trainer,
                           MakeKtoTrainer(options, {}, given, Labelled()));
    } else {
      COX_ASSIGN_OR_RETURN(
          parts.trainer,
          MakeDpoTrainer(options, test.dpo, given,
                         {.train = Comparisons(), .heldout = Comparisons()}));
    }
    return parts;
  };
}

BatchInput NoInput(int64_t) { return {}; }

class PreferenceTrainerTest : public ::testing::TestWithParam<TestCase> {};

TEST_P(PreferenceTrainerTest, RanksDoNotChangeABit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, Make(GetParam()), NoInput, 1, kSteps));
  testing::ExpectRegistered(one.results);
  for (const int world : {2, 4}) {
    ASSERT_OK_AND_ASSIGN(const RunOutcome many,
                         RunSteps(world, Make(GetParam()), NoInput, 1, kSteps));
    EXPECT_EQ(many.weight_hash, one.weight_hash) << world;
    EXPECT_EQ(many.state, one.state);
    EXPECT_EQ(many.results.back().metrics, one.results.back().metrics);
  }
}

TEST_P(PreferenceTrainerTest, AResumedRunIsTheContinuousOneBitForBit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome whole,
                       RunSteps(2, Make(GetParam()), NoInput, 1, kSteps));
  ASSERT_OK_AND_ASSIGN(const RunOutcome half,
                       RunSteps(2, Make(GetParam()), NoInput, 1, 2));
  ASSERT_OK_AND_ASSIGN(const RunOutcome rest,
                       RunSteps(2, Make(GetParam()), NoInput, 3, kSteps,
                                testing::RestoreFrom(half)));
  EXPECT_EQ(rest.weight_hash, whole.weight_hash);
  EXPECT_EQ(rest.state, whole.state);
  EXPECT_EQ(rest.results.back().metrics, whole.results.back().metrics);
}

TEST_P(PreferenceTrainerTest, StartsAtTheReferenceAndLearns) {
  const bool kto = GetParam().kto;
  ASSERT_OK_AND_ASSIGN(const RunOutcome run,
                       RunSteps(1, Make(GetParam(), 40), NoInput, 1, 40));
  const auto& first = run.results.front().metrics;
  const auto& last = run.results.back().metrics;
  const std::string loss = kto ? "loss/kto" : "loss/dpo";
  const std::string margin = kto ? "kto/margin" : "dpo/margin";
  const std::string accuracy = kto ? "kto/accuracy" : "dpo/accuracy";
  // Policy = reference: every log-ratio is 0.
  EXPECT_EQ(first.at(margin), 0.0);
  if (kto) {
    EXPECT_EQ(first.at("kto/z0"), 0.0);
    EXPECT_DOUBLE_EQ(first.at(loss), 0.5);
  } else if (GetParam().dpo.kind == PreferenceKind::kDpo) {
    EXPECT_NEAR(first.at(loss), std::log(2.0), 1e-12);
  } else {
    EXPECT_NEAR(first.at(loss), 25.0, 1e-9);  // (1 / (2 * .1))^2
  }
  EXPECT_LT(last.at(loss), 0.9 * first.at(loss));
  EXPECT_GT(last.at(accuracy), 0.8);
  EXPECT_GT(last.at(margin), 0.05);
  EXPECT_GT(last.at("text/heldout_ppl"), 0.0);
  if (!kto) {
    EXPECT_EQ(last.at("dpo/heldout_accuracy"), 1.0);
    EXPECT_EQ(first.at("dpo/heldout_accuracy"), 0.0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, PreferenceTrainerTest,
    ::testing::Values(
        TestCase{.name = "dpo"},
        TestCase{
            .name = "cdpo", .dpo = {.label_smoothing = 0.1}, .micro_batch = 1},
        TestCase{.name = "ipo", .dpo = {.kind = PreferenceKind::kIpo}},
        TestCase{.name = "ipo_sums",
                 .dpo = {.kind = PreferenceKind::kIpo, .length_norm = false}},
        TestCase{.name = "kto", .kto = true},
        TestCase{.name = "kto_micro", .kto = true, .micro_batch = 1}),
    [](const auto& instance) { return instance.param.name; });

// The vector of docs/algorithms.md §8 through the trainer: its loss is the mean
// over the pairs of the step, computed here by hand from the engine's outputs.
TEST(DpoTrainerTest, LossIsTheMeanOverAllPairsOfTheStep) {
  std::unique_ptr<Collective> group = MakeSingleRank();
  ASSERT_OK_AND_ASSIGN(RankParts parts, Make({.name = ""}, 2)(*group));
  const std::unique_ptr<TrainEngine> reference = MakeFakeTrainEngine();
  ASSERT_OK(reference->Load(StartPolicy()));
  ASSERT_OK(parts.trainer->Step(1, {}));
  // Held-out loss after the last step, against the weights it ended with.
  ASSERT_OK_AND_ASSIGN(const StepResult result, parts.trainer->Step(2, {}));
  const auto sum = [](ScoreEngine& engine, const Sequence& sequence) {
    const Sequence* rows[] = {&sequence};
    const auto output =
        engine.Logprobs(MakeTokenBatch(rows), 1.0, /*want_entropy=*/false);
    EXPECT_OK(output);
    double total = 0;
    for (const float logprob : output->logprobs) total += double{logprob};
    return total;
  };
  double loss = 0;
  double pairs = 0;
  for (const Comparison& row : Comparisons()) {
    std::vector<double> ratio;
    for (const Sequence& completion : row.completions) {
      ratio.push_back(sum(*parts.policy, completion) -
                      sum(*reference, completion));
    }
    for (size_t w = 0; w < ratio.size(); ++w) {
      for (size_t l = 0; l < ratio.size(); ++l) {
        if (row.ranks[w] < row.ranks[l]) {
          loss += std::log1p(std::exp(-0.1 * (ratio[w] - ratio[l])));
          pairs += 1;
        }
      }
    }
  }
  EXPECT_EQ(pairs, 27.0);
  EXPECT_NEAR(result.metrics.at("dpo/heldout_loss"), loss / pairs, 1e-6);
}

// z0 is the mean log-ratio of prompts with the answer to another prompt.
TEST(KtoTrainerTest, ReferencePointComesFromOtherPromptsAnswers) {
  std::unique_ptr<Collective> group = MakeSingleRank();
  std::unique_ptr<TrainEngine> policy = MakeFakeTrainEngine();
  ASSERT_OK(policy->Load(StartPolicy()));
  std::unique_ptr<TrainEngine> reference = MakeFakeTrainEngine();
  ASSERT_OK_AND_ASSIGN(const auto other,
                       FakeSnapshot(FakeModelConfig(8, 8), "policy", 9));
  ASSERT_OK(reference->Load(other));
  LabelledRow rows[2];
  rows[0].completions.push_back(MakeSequence({1, 5}));
  rows[1].completions.push_back(MakeSequence({2, 6}));
  rows[0].desirable = {1};
  rows[1].desirable = {0};
  PreferenceTrainOptions options;
  options.total_steps = 1;
  options.optimizer = testing::TestOptimizer(0.01);
  const PreferenceParts parts = {.policy = policy.get(),
                                 .reference = reference.get(),
                                 .group = group.get()};
  const auto ratio = [&](std::vector<int32_t> ids) {
    const Sequence sequence = MakeSequence(std::move(ids));
    const Sequence* all[] = {&sequence};
    const TokenBatch batch = MakeTokenBatch(all);
    return double{policy->Logprobs(batch, 1.0, false)->logprobs[0]} -
           double{reference->Logprobs(batch, 1.0, false)->logprobs[0]};
  };
  const double expected = std::max(0.0, (ratio({1, 6}) + ratio({2, 5})) / 2);
  const double good = ratio({1, 5});
  const double bad = ratio({2, 6});
  ASSERT_OK_AND_ASSIGN(const auto trainer,
                       MakeKtoTrainer(options, {}, parts, {rows[0], rows[1]}));
  ASSERT_OK_AND_ASSIGN(const StepResult result, trainer->Step(1, {}));
  EXPECT_NEAR(result.metrics.at("kto/z0"), expected, 1e-6);
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  EXPECT_NEAR(
      result.metrics.at("loss/kto"),
      (sigmoid(-0.1 * (good - expected)) + sigmoid(-0.1 * (expected - bad))) /
          2,
      1e-6);
  EXPECT_NEAR(result.metrics.at("kto/reward_desirable"), 0.1 * good, 1e-6);
}

TEST(PreferenceTrainerErrorsTest, NeedSomethingToLearnFrom) {
  std::unique_ptr<Collective> group = MakeSingleRank();
  std::unique_ptr<TrainEngine> engine = MakeFakeTrainEngine();
  ASSERT_OK(engine->Load(StartPolicy()));
  const PreferenceParts parts = {
      .policy = engine.get(), .reference = engine.get(), .group = group.get()};
  std::vector<Comparison> ties = {Comparisons()[4]};
  EXPECT_THAT(
      MakeDpoTrainer({}, {}, parts, {.train = ties, .heldout = {}}),
      StatusIsWith(absl::StatusCode::kInvalidArgument, HasSubstr("no pair")));
  EXPECT_THAT(MakeKtoTrainer({}, {}, parts, {LabelsOf(ties[0])}),
              StatusIsWith(absl::StatusCode::kInvalidArgument,
                           HasSubstr("no labelled answer")));
  EXPECT_THAT(
      MakeDpoTrainer({}, {.beta = 0}, parts,
                     {.train = Comparisons(), .heldout = {}}),
      StatusIsWith(absl::StatusCode::kInvalidArgument, HasSubstr("dpo.beta")));
}

TEST(LabelsOfTest, WinnersAreGoodLosersBadTheMiddleIsLeftOut) {
  Comparison comparison;
  for (int32_t k = 0; k < 3; ++k) {
    comparison.completions.push_back(MakeSequence({0, k}));
    comparison.ranks.push_back(k + 1);
  }
  const LabelledRow row = LabelsOf(comparison);
  ASSERT_EQ(row.completions.size(), 2u);
  EXPECT_EQ(row.completions[0].ids[1], 0);
  EXPECT_EQ(row.completions[1].ids[1], 2);
  EXPECT_THAT(row.desirable, ::testing::ElementsAre(1, 0));
}

TEST(BestOfTest, ChoosesByRankOrByRewardOnAnyNumberOfRanks) {
  const std::vector<Comparison> rows = Comparisons();
  const std::vector<Sequence> ranked = BestByRank(rows);
  ASSERT_EQ(ranked.size(), rows.size());
  EXPECT_EQ(ranked[1].ids.back(), 6);  // three answers, the last is best
  EXPECT_EQ(ranked[4].ids.back(), 4);  // a tie: the first
  std::vector<std::vector<int32_t>> chosen[2];
  for (const int world : {1, 2}) {
    const std::vector<std::unique_ptr<Collective>> groups =
        MakeInProcessGroup(world);
    std::vector<absl::Status> statuses(static_cast<size_t>(world));
    std::vector<Thread> threads;
    for (size_t rank = 0; rank < groups.size(); ++rank) {
      threads.emplace_back("rank", [&, rank, world] {
        statuses[rank] = [&]() -> absl::Status {
          const std::unique_ptr<TrainEngine> reward = MakeFakeTrainEngine();
          COX_ASSIGN_OR_RETURN(
              const auto snapshot,
              FakeSnapshot(FakeModelConfig(8, 4, HeadKind::kScalar), "reward",
                           2));
          COX_RETURN_IF_ERROR(reward->Load(snapshot));
          COX_ASSIGN_OR_RETURN(const Shards shards,
                               Shards::Create(4, *groups[rank]));
          COX_ASSIGN_OR_RETURN(const std::vector<Sequence> best,
                               BestByReward(rows, 2, *reward, shards));
          if (rank == 0) {
            for (size_t p = 0; p < best.size(); ++p) {
              chosen[world - 1].push_back(best[p].ids);
              // No other answer of the row scores higher.
              for (const Sequence& other : rows[p].completions) {
                const Sequence* both[] = {&best[p], &other};
                COX_ASSIGN_OR_RETURN(const auto scores,
                                     reward->Scores(MakeTokenBatch(both)));
                EXPECT_GE(scores[0], scores[1]);
              }
            }
          }
          return absl::OkStatus();
        }();
      });
    }
    threads.clear();
    for (const absl::Status& status : statuses) EXPECT_OK(status);
  }
  EXPECT_EQ(chosen[0].size(), rows.size());
  EXPECT_EQ(chosen[0], chosen[1]);
}

}  // namespace
}  // namespace cox
