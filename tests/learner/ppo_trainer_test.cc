#include "learner/ppo_trainer.h"

#include <cstring>

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

constexpr int64_t kVocabulary = 7;
constexpr int32_t kEnd = 0;

std::shared_ptr<const Snapshot> StartPolicy() {
  return *FakeSnapshot(FakeModelConfig(kVocabulary, 7), "policy", 11);
}

struct TestCase {
  std::string name;
  std::optional<GroupEstimator> group = std::nullopt;
  PolicyLossKind loss = PolicyLossKind::kPpo;
  LossAgg agg = LossAgg::kTokenMean;
  RolloutSchedule mode = RolloutSchedule::kSync;
  double ptx = 0;
  double ema = 0;
  double target_kl = 0;
  int64_t warmup = 0;
  ScorePosition position = ScorePosition::kLast;
};

PpoOptions Options(const TestCase& test) {
  PpoOptions options;
  options.rollout.mode = test.mode;
  options.rollout.eta = 3;
  options.rollout.group = test.group;
  options.rollout.shape.missing_stop = MissingStop::kReplace;
  options.rollout.shape.position = test.position;
  options.rollout.whiten_rewards = true;
  options.seed = 5;
  options.loss.kind = test.loss;
  options.loss.agg = test.agg;
  options.loss.kl_loss = KlLoss::kK2;
  options.loss.kl_beta = 0.01;
  options.t_max = 6;
  options.epochs = 2;
  options.minibatches = 3;
  options.micro_batch = 2;
  options.entropy_coef = 0.01;
  options.target_kl = test.target_kl;
  options.value_warmup_steps = test.warmup;
  options.optimizer = testing::TestOptimizer(0.01);
  options.value_optimizer = testing::TestOptimizer(0.02);
  options.controller = *KlController::Adaptive(0.1, 0.5, 100);
  options.ptx_coef = test.ptx;
  options.ptx_batch = test.ptx > 0 ? 3 : 0;
  options.ema_decay = test.ema;
  options.total_steps = 4;
  return options;
}

testing::MakeRank MakePpo(const TestCase& test) {
  return [test](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    parts.policy = MakeFakeTrainEngine();
    const std::shared_ptr<const Snapshot> policy = StartPolicy();
    COX_RETURN_IF_ERROR(parts.policy->Load(policy));
    if (!test.group.has_value()) {
      parts.critic = MakeFakeTrainEngine();
      COX_ASSIGN_OR_RETURN(auto critic,
                           WithHead(*policy, HeadKind::kScalar, "critic", 3));
      COX_RETURN_IF_ERROR(parts.critic->Load(critic));
    }
    std::vector<Sequence> text;
    for (int32_t k = 0; k < 5; ++k) {
      Sequence& sequence = text.emplace_back();
      sequence.ids = {k, k + 1, k + 2, k};
    }
    const std::vector<Sequence> heldout(text.begin() + 1, text.end());
    parts.source = MakeExampleSource(text, 5, "ptx");
    COX_ASSIGN_OR_RETURN(
        parts.trainer,
        MakePpoTrainer(Options(test), {.policy = parts.policy.get(),
                                       .critic = parts.critic.get(),
                                       .group = &group,
                                       .ptx = parts.source.get(),
                                       .heldout = heldout}));
    return parts;
  };
}

// Two samples each of four prompts, sampled from `policy`; answers with
// many 3s score high; one answer could not be scored.
BatchInput SampleBatch(int64_t step, std::shared_ptr<const Snapshot> policy) {
  std::unique_ptr<PolicyEngine> engine = MakeFakePolicyEngine();
  EXPECT_OK(engine->Load(std::move(policy)));
  GenerateRequest request;
  request.seed = 17;
  request.max_new_tokens = 5;
  request.pad_id = 1;
  request.sampling.eos_ids = {kEnd};
  for (int32_t p = 0; p < 4; ++p) {
    for (uint64_t k = 0; k < 2; ++k) {
      request.prompts.push_back({p + 1, 2});
      request.prompt_ids.push_back(static_cast<uint64_t>(step * 100 + p));
      request.sample_indices.push_back(k);
    }
  }
  const auto generated = engine->Generate(request);
  EXPECT_OK(generated);
  BatchInput input;
  input.batch_sha256 = std::string(64, 'a');
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    Trajectory& row = input.trajectories.emplace_back();
    row.id = {{0, step, static_cast<int32_t>(i / 4)},
              static_cast<int32_t>(i / 2 % 2),
              static_cast<int32_t>(i % 2)};
    row.prompt_ids = request.prompts[i];
    row.response_ids = generated->tokens[i];
    row.behaviour_logprobs = generated->logprobs[i];
    row.reference_logprobs = generated->logprobs[i];
    for (float& logprob : row.reference_logprobs) {
      logprob -= 0.01f * static_cast<float>(i);
    }
    row.finish = generated->finish[i];
    row.version = {0, step - 1};
    row.policy_hash = std::string(64, 'b');
    if (i != 3) {
      row.reward_total =
          static_cast<double>(
              std::count(row.response_ids.begin(), row.response_ids.end(), 3)) +
          0.1 * static_cast<double>(i);
      row.reward_parts = {{"gold", 2.0 * static_cast<double>(i)}};
    }
  }
  return input;
}

BatchInput MakeBatch(int64_t step) { return SampleBatch(step, StartPolicy()); }

class PpoTrainerTest : public ::testing::TestWithParam<TestCase> {};

TEST_P(PpoTrainerTest, RanksDoNotChangeABit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, MakePpo(GetParam()), MakeBatch, 1, 3));
  testing::ExpectRegistered(one.results);
  for (const int world : {2, 4}) {
    ASSERT_OK_AND_ASSIGN(const RunOutcome many,
                         RunSteps(world, MakePpo(GetParam()), MakeBatch, 1, 3));
    testing::ExpectSameBits(many, one);
  }
}

// Three ranks own no subtrees of the shards.
TEST_P(PpoTrainerTest, OtherSumsChangeNoMoreThanRounding) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, MakePpo(GetParam()), MakeBatch, 1, 3));
  ASSERT_OK_AND_ASSIGN(const RunOutcome many,
                       RunSteps(3, MakePpo(GetParam()), MakeBatch, 1, 3));
  EXPECT_LE(RelativeDistance(many.policy, one.policy), 1e-6);
  if (!one.critic.empty()) {
    EXPECT_LE(RelativeDistance(many.critic, one.critic), 1e-6);
  }
  for (size_t i = 0; i < 3; ++i) {
    const auto& expected = one.results[i].metrics;
    const auto& found = many.results[i].metrics;
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [name, value] : expected) {
      EXPECT_NEAR(found.at(name), value, 1e-5 * std::max(1.0, std::abs(value)))
          << name;
    }
  }
}

TEST_P(PpoTrainerTest, TheFirstRatioIsOne) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome run,
                       RunSteps(2, MakePpo(GetParam()), MakeBatch, 1, 3));
  for (const StepResult& result : run.results) {
    if (result.metrics.contains("policy/first_ratio_error")) {
      EXPECT_LE(result.metrics.at("policy/first_ratio_error"), 1e-6);
      EXPECT_EQ(result.metrics.at("policy/first_clipfrac"), 0.0);
      EXPECT_LE(result.metrics.at("policy/first_approxkl"), 1e-12);
    }
    EXPECT_EQ(result.metrics.at("rollout/excluded"), 1.0);
    EXPECT_FALSE(result.skipped);
  }
  // Step 1 trains on the very weights that sampled its batch.
  EXPECT_LE(run.results[0].metrics.at("mismatch/max_abs"), 1e-5);
}

TEST_P(PpoTrainerTest, AResumedRunIsTheContinuousOneBitForBit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome whole,
                       RunSteps(2, MakePpo(GetParam()), MakeBatch, 1, 4));
  ASSERT_OK_AND_ASSIGN(const RunOutcome half,
                       RunSteps(2, MakePpo(GetParam()), MakeBatch, 1, 2));
  ASSERT_OK_AND_ASSIGN(const RunOutcome rest,
                       RunSteps(2, MakePpo(GetParam()), MakeBatch, 3, 4,
                                testing::RestoreFrom(half)));
  EXPECT_EQ(rest.weight_hash, whole.weight_hash);
  EXPECT_EQ(rest.results.back().metrics, whole.results.back().metrics);
  EXPECT_EQ(rest.critic, whole.critic);
  EXPECT_EQ(rest.state, whole.state);
}

INSTANTIATE_TEST_SUITE_P(
    Profiles, PpoTrainerTest,
    ::testing::Values(TestCase{.name = "gae"},
                      TestCase{.name = "gae_everything",
                               .ptx = 0.5,
                               .ema = 0.9,
                               .warmup = 1,
                               .position = ScorePosition::kAfterLast},
                      TestCase{.name = "gae_early_stop", .target_kl = 1e-7},
                      TestCase{.name = "streaming",
                               .mode = RolloutSchedule::kStreaming},
                      TestCase{.name = "rloo",
                               .group = GroupEstimator::kRloo,
                               .loss = PolicyLossKind::kReinforce,
                               .agg = LossAgg::kSeqMeanTokenSum},
                      TestCase{.name = "grpo_gspo",
                               .group = GroupEstimator::kGrpo,
                               .loss = PolicyLossKind::kGspo,
                               .agg = LossAgg::kSeqMeanTokenMean},
                      TestCase{.name = "dr_grpo",
                               .group = GroupEstimator::kDrGrpo,
                               .agg = LossAgg::kConst},
                      TestCase{.name = "reinforce_pp_cispo",
                               .group = GroupEstimator::kReinforcePp,
                               .loss = PolicyLossKind::kCispo},
                      TestCase{.name = "reinforce_pp_baseline",
                               .group = GroupEstimator::kReinforcePpBaseline}),
    [](const auto& instance) { return instance.param.name; });

TEST(PpoTrainerTest, EarlyStopLeavesTheEpochsBeforeTheUpdate) {
  const TestCase test = {.name = "", .target_kl = 1e-7};
  ASSERT_OK_AND_ASSIGN(const RunOutcome run,
                       RunSteps(1, MakePpo(test), MakeBatch, 1, 1));
  // The first minibatch has approxkl 0, the second is over the bound.
  EXPECT_EQ(run.results[0].metrics.at("policy/updates"), 1.0);
}

TEST(PpoTrainerTest, WarmUpTrainsTheCriticOnly) {
  const TestCase test = {.name = "", .warmup = 2};
  ASSERT_OK_AND_ASSIGN(const RunOutcome run,
                       RunSteps(1, MakePpo(test), MakeBatch, 1, 2));
  std::unique_ptr<TrainEngine> start = MakeFakeTrainEngine();
  ASSERT_OK(start->Load(StartPolicy()));
  EXPECT_EQ(run.policy, std::vector<float>(start->Parameters().begin(),
                                           start->Parameters().end()));
  EXPECT_TRUE(run.results[0].metrics.contains("loss/value"));
  EXPECT_FALSE(run.results[0].metrics.contains("loss/policy"));
}

TEST(PpoTrainerTest, PolicyLearnsWhatIsRewarded) {
  TestCase test = {.name = ""};
  std::unique_ptr<Collective> group = MakeSingleRank();
  ASSERT_OK_AND_ASSIGN(RankParts parts, MakePpo(test)(*group));
  const auto probability = [&] {
    Sequence sequence;
    sequence.ids = {1, 2, 3};
    sequence.first_target = 2;
    const Sequence* rows[] = {&sequence};
    const auto output =
        parts.policy->Logprobs(MakeTokenBatch(rows), 1.0, false);
    EXPECT_OK(output);
    return std::exp(output->logprobs[1]);
  };
  const double before = probability();
  for (int64_t step = 1; step <= 20; ++step) {
    ASSERT_OK_AND_ASSIGN(const auto policy, parts.trainer->Trained());
    BatchInput input = SampleBatch(step, policy);
    for (Trajectory& row : input.trajectories) {
      row.finish = FinishReason::kStop;
      row.reference_logprobs = row.behaviour_logprobs;
      row.reward_total = static_cast<double>(
          std::count(row.response_ids.begin(), row.response_ids.end(), 3));
    }
    ASSERT_OK(parts.trainer->Step(step, input));
  }
  EXPECT_GT(probability(), 1.2 * before);
}

TEST(PpoTrainerTest, MeasuresHeldOutTextWhichPtxProtects) {
  const auto nll_of = [](const RunOutcome& run, size_t i) {
    return run.results[i].metrics.at("text/heldout_nll");
  };
  ASSERT_OK_AND_ASSIGN(const RunOutcome without,
                       RunSteps(2, MakePpo({.name = ""}), MakeBatch, 1, 4));
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome with,
      RunSteps(2, MakePpo({.name = "", .ptx = 0.5}), MakeBatch, 1, 4));
  // Before the first update both are the starting policy.
  EXPECT_EQ(nll_of(without, 0), nll_of(with, 0));
  EXPECT_NEAR(nll_of(with, 0), std::log(double{kVocabulary}), 0.1);
  for (const size_t i : {1, 2}) {
    EXPECT_FALSE(with.results[i].metrics.contains("text/heldout_nll"));
  }
  EXPECT_LT(nll_of(with, 3), nll_of(with, 0));
  EXPECT_LT(nll_of(with, 3), nll_of(without, 3));
  EXPECT_NEAR(with.results[3].metrics.at("text/heldout_ppl"),
              std::exp(nll_of(with, 3)), 1e-9);
}

TEST(PpoTrainerTest, KeepsShadowWeightsAsAModelOfTheCheckpoint) {
  TestCase test = {.name = "", .ema = 0.9};
  std::unique_ptr<Collective> group = MakeSingleRank();
  ASSERT_OK_AND_ASSIGN(RankParts parts, MakePpo(test)(*group));
  ASSERT_OK(parts.trainer->Step(1, MakeBatch(1)));
  ASSERT_OK_AND_ASSIGN(const auto models, parts.trainer->Models());
  std::vector<std::string> folders;
  for (const StageModel& model : models) {
    folders.push_back(model.folder);
  }
  EXPECT_THAT(folders,
              ::testing::ElementsAre("policy", "critic", "policy_ema"));
  EXPECT_NE(models[0].snapshot->content_hash, models[2].snapshot->content_hash);
}

TEST(PpoTrainerTest, RefusesABatchOfAnotherVersion) {
  std::unique_ptr<Collective> group = MakeSingleRank();
  ASSERT_OK_AND_ASSIGN(RankParts parts, MakePpo({.name = ""})(*group));
  BatchInput input = MakeBatch(1);
  input.trajectories[2].version.step = 1;
  EXPECT_THAT(parts.trainer->Step(1, input),
              testing::StatusIs(absl::StatusCode::kInternal));
}

TEST(PpoTrainerTest, AnEmptyBatchChangesNothing) {
  BatchInput input = MakeBatch(1);
  for (Trajectory& row : input.trajectories) {
    row.reward_total.reset();
    row.reward_parts.clear();
  }
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome run,
      RunSteps(
          2, MakePpo({.name = ""}), [&](int64_t) { return input; }, 1, 1));
  EXPECT_EQ(run.results[0].metrics.at("rollout/excluded"), 8.0);
  EXPECT_EQ(run.weight_hash, StartPolicy()->content_hash);
}

}  // namespace
}  // namespace cox
