// Updates of ppo in parts: denominators, gradients, the order of minibatches,
// and which text and which place of the schedule belong to an update.

#include "learner/ppo_update.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/ppo_trainer.h"
#include "lib/engine/fake.h"
#include "tests/learner/learner_testing.h"

namespace cox {
namespace {

using testing::RankParts;
using testing::RunOutcome;
using testing::RunSteps;

// Six answers of 1 to 4 tokens to prompts of stage 0.
BatchInput Answers(int64_t step) {
  BatchInput input;
  input.batch_sha256 = std::string(64, 'a');
  for (int32_t i = 0; i < 6; ++i) {
    Trajectory& row = input.trajectories.emplace_back();
    row.id = {{0, step, i / 3}, i % 3, 0};
    row.prompt_ids = {1 + i, 2};
    for (int32_t t = 0; t <= i % 4; ++t) {
      row.response_ids.push_back((3 * i + t) % 8);
      row.behaviour_logprobs.push_back(-2.0f - 0.1f * static_cast<float>(t));
      row.reference_logprobs.push_back(-2.1f);
    }
    row.finish = FinishReason::kStop;
    row.version = {0, step - 1};
    row.policy_hash = std::string(64, 'b');
    row.reward_total = 0.5 * i - 1;
  }
  return input;
}

absl::StatusOr<std::unique_ptr<TrainEngine>> Engine(HeadKind head,
                                                    double gain) {
  ModelConfig config = FakeModelConfig(8, 7, head);
  config.reward_gain = gain;
  std::unique_ptr<TrainEngine> engine = MakeFakeTrainEngine();
  COX_ASSIGN_OR_RETURN(auto snapshot, FakeSnapshot(config, "model", 5));
  COX_RETURN_IF_ERROR(engine->Load(snapshot));
  return engine;
}

PpoOptions Options() {
  PpoOptions options;
  options.rollout.shape.position = ScorePosition::kAfterLast;
  options.epochs = 2;
  options.minibatches = 3;
  options.seed = 5;
  options.optimizer = testing::TestOptimizer(0.01);
  options.value_optimizer = testing::TestOptimizer(0.01);
  options.controller = *KlController::Fixed(0.1);
  options.total_steps = 4;
  return options;
}

class PpoUpdateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.minibatches = 1;
    ASSERT_OK_AND_ASSIGN(policy_, Engine(HeadKind::kLanguageModel, 1));
    ASSERT_OK_AND_ASSIGN(critic_, Engine(HeadKind::kScalar, 2.5));
    parts_ = {.policy = policy_.get(),
              .critic = critic_.get(),
              .group = group_[0].get()};
    ASSERT_OK_AND_ASSIGN(const Shards shards, Shards::Create(1, *group_[0]));
    ASSERT_OK_AND_ASSIGN(
        batch_, MakeRolloutBatch(1, Answers(1).trajectories, options_.rollout));
    ASSERT_OK(FillModelOutputs(options_, parts_, shards, &batch_));
    ASSERT_OK(ComputeAdvantages(options_.rollout, 0.1, &batch_));
    minibatch_ = MakeMinibatches(batch_, options_, 1, 0)[0];
    for (int64_t p = 0; p < minibatch_.size(); ++p) places_.push_back(p);
  }

  PpoOptions options_ = Options();
  std::vector<std::unique_ptr<Collective>> group_ = MakeInProcessGroup(1);
  std::unique_ptr<TrainEngine> policy_;
  std::unique_ptr<TrainEngine> critic_;
  PpoParts parts_;
  RolloutBatch batch_;
  Minibatch minibatch_;
  std::vector<int64_t> places_;
};

TEST_F(PpoUpdateTest, MicroBatchesShareTheDenominator) {
  ASSERT_OK(PolicyBackward(options_, parts_, batch_, minibatch_, places_,
                           /*want_entropy=*/false)
                .status());
  const std::vector<float> whole(policy_->Gradients().begin(),
                                 policy_->Gradients().end());
  policy_->ZeroGradients();
  options_.micro_batch = 1;
  ASSERT_OK(PolicyBackward(options_, parts_, batch_, minibatch_, places_,
                           /*want_entropy=*/false)
                .status());
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_NEAR(policy_->Gradients()[i], whole[i], 1e-6) << i;
  }
}

// With a gain, and a value of the place after the last token.
TEST_F(PpoUpdateTest, TheValueGradientMatchesFiniteDifferences) {
  const auto loss = [&] {
    critic_->ZeroGradients();
    const auto sums =
        ValueBackward(options_, parts_, batch_, minibatch_, places_);
    EXPECT_OK(sums);
    return sums->loss;
  };
  loss();
  const std::vector<float> found(critic_->Gradients().begin(),
                                 critic_->Gradients().end());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    float& parameter = critic_->Parameters()[i];
    const float kept = parameter;
    parameter = kept + 0.01f;
    const double high = loss();
    const double up = double{parameter};
    parameter = kept - 0.01f;
    const double expected = (high - loss()) / (up - double{parameter});
    parameter = kept;
    difference += std::pow(double{found[i]} - expected, 2);
    norm += expected * expected;
  }
  EXPECT_GT(norm, 1e-3);
  EXPECT_LE(std::sqrt(difference / norm), 5e-3);
}

TEST_F(PpoUpdateTest, EveryEpochHasItsOwnOrderOfAllRows) {
  options_.minibatches = 3;
  std::set<std::vector<int64_t>> orders;
  for (const auto& [step, epoch] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 0}, {1, 1}, {2, 0}}) {
    std::vector<int64_t> order;
    for (const Minibatch& part :
         MakeMinibatches(batch_, options_, step, epoch)) {
      EXPECT_EQ(part.size(), 2);
      order.insert(order.end(), part.rows.begin(), part.rows.end());
    }
    orders.insert(order);
    std::sort(order.begin(), order.end());
    EXPECT_THAT(order, ::testing::ElementsAre(0, 1, 2, 3, 4, 5));
  }
  EXPECT_EQ(orders.size(), 3u);
}

class NotingSource final : public LmSource {
 public:
  explicit NotingSource(std::set<int64_t>& positions) : positions_(positions) {}
  Sequence At(int64_t position) const override {
    positions_.insert(position);
    Sequence sequence;
    sequence.ids = {static_cast<int32_t>(position % 8), 1, 2};
    return sequence;
  }

 private:
  std::set<int64_t>& positions_;
};

testing::MakeRank MakePpo(double ptx, std::set<int64_t>& positions) {
  return [ptx, &positions](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    COX_ASSIGN_OR_RETURN(parts.policy, Engine(HeadKind::kLanguageModel, 1));
    COX_ASSIGN_OR_RETURN(parts.critic, Engine(HeadKind::kScalar, 2.5));
    parts.source = std::make_unique<NotingSource>(positions);
    PpoOptions options = Options();
    options.optimizer.schedule.kind = LrKind::kLinear;
    options.optimizer.schedule.total = 24;
    options.ptx_coef = ptx;
    options.ptx_batch = 2;
    COX_ASSIGN_OR_RETURN(parts.trainer,
                         MakePpoTrainer(options, {.policy = parts.policy.get(),
                                                  .critic = parts.critic.get(),
                                                  .group = &group,
                                                  .ptx = parts.source.get()}));
    return parts;
  };
}

TEST(PpoTrainerUpdatesTest, CountOnOverEpochsAndSteps) {
  std::set<int64_t> positions;
  ASSERT_OK_AND_ASSIGN(const RunOutcome run,
                       RunSteps(1, MakePpo(0.5, positions), Answers, 1, 2));
  // Two texts for each of 2 steps x 2 epochs x 3 minibatches.
  EXPECT_EQ(positions.size(), 24u);
  EXPECT_EQ(*positions.begin(), 0);
  EXPECT_EQ(*positions.rbegin(), 23);
  // The last updates of the steps are the 6th and the 12th of 24.
  EXPECT_NEAR(run.results[0].metrics.at("lr"), 0.01 * (1 - 5.0 / 24), 1e-9);
  EXPECT_NEAR(run.results[1].metrics.at("lr"), 0.01 * (1 - 11.0 / 24), 1e-9);
}

TEST(PpoTrainerUpdatesTest, TheCoefficientOfTheTextMatters) {
  std::set<int64_t> positions;
  ASSERT_OK_AND_ASSIGN(const RunOutcome half,
                       RunSteps(1, MakePpo(0.5, positions), Answers, 1, 1));
  ASSERT_OK_AND_ASSIGN(const RunOutcome twice,
                       RunSteps(1, MakePpo(2.0, positions), Answers, 1, 1));
  EXPECT_GT(twice.results[0].metrics.at("grad_norm/policy"),
            1.5 * half.results[0].metrics.at("grad_norm/policy"));
}

}  // namespace
}  // namespace cox
