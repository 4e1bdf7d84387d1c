// The trainers on the LibTorch engines: tiny GPT-2s. Adam's epsilon is 1e-8
// and there is no warm-up: the smallest difference of a gradient would show.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/lm_trainer.h"
#include "learner/ppo_trainer.h"
#include "learner/rm_trainer.h"
#include "lib/engine/model_config.h"
#include "lib/model/api.h"
#include "tests/learner/learner_testing.h"

namespace cox {
namespace {

using testing::MakeRank;
using testing::RankParts;
using testing::RunOutcome;
using testing::RunSteps;

ModelConfig TinyGpt2(HeadKind head) {
  ModelConfig config;
  config.head = head;
  config.vocab_size = 16;
  config.hidden = 16;
  config.layers = 2;
  config.heads = 2;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.intermediate = 32;
  config.max_positions = 16;
  return config;
}

absl::StatusOr<std::unique_ptr<TrainEngine>> TinyEngine(HeadKind head,
                                                        uint64_t seed) {
  COX_ASSIGN_OR_RETURN(std::unique_ptr<TrainEngine> engine,
                       MakeTrainEngine(EngineOptions()));
  const Manifest layout = ParameterLayout(TinyGpt2(head), "model");
  std::vector<float> parameters(layout.arena_bytes / sizeof(float), 0.0f);
  InitializeParameters(TinyGpt2(head), seed, parameters);
  COX_ASSIGN_OR_RETURN(auto snapshot, SnapshotFromFloats(layout, parameters));
  COX_RETURN_IF_ERROR(engine->Load(snapshot));
  return engine;
}

// Of 4 to 7 tokens.
Sequence Text(int32_t p) {
  Sequence sequence;
  for (int32_t k = 0; k < 4 + p % 4; ++k) {
    sequence.ids.push_back((p + 3 * k) % 16);
  }
  return sequence;
}

std::vector<Sequence> Texts(int32_t count) {
  std::vector<Sequence> texts;
  for (int32_t p = 0; p < count; ++p) {
    texts.push_back(Text(p));
  }
  return texts;
}

MakeRank TinyLm(double lr, int64_t micro_batch = 0, double dropout = 0) {
  return [=](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    COX_ASSIGN_OR_RETURN(parts.policy, TinyEngine(HeadKind::kLanguageModel, 3));
    parts.source = MakeExampleSource(Texts(12), 1, "text");
    LmOptions options;
    options.batch = 7;  // shards of 2, 2, 2 and 1
    options.micro_batch = micro_batch;
    options.total_steps = 60;
    options.heldout_every = 0;
    options.dropout = {dropout, /*seed=*/6, /*stage=*/1};
    options.optimizer = testing::TestOptimizer(lr);
    options.optimizer.max_grad_norm = 0.1;
    COX_ASSIGN_OR_RETURN(
        parts.trainer,
        MakeLmTrainer(options, *parts.policy, group, *parts.source, Texts(5)));
    return parts;
  };
}

MakeRank TinyRm(double dropout = 0) {
  return [dropout](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    COX_ASSIGN_OR_RETURN(parts.policy, TinyEngine(HeadKind::kScalar, 4));
    RmOptions options;
    options.batch = 6;
    options.total_steps = 4;
    options.dropout = dropout;
    options.optimizer = testing::TestOptimizer(0.001);
    RmData data;
    for (int32_t p = 0; p < 16; ++p) {
      Comparison comparison;
      for (int32_t k = 0; k < 2 + p % 3; ++k) {
        comparison.completions.push_back(Text(p + 5 * k));
        comparison.ranks.push_back(k);
      }
      data.train.push_back(comparison);
    }
    data.heldout.assign(data.train.begin(), data.train.begin() + 5);
    data.demonstrations = Texts(7);
    COX_ASSIGN_OR_RETURN(parts.trainer, MakeRmTrainer(options, *parts.policy,
                                                      group, std::move(data)));
    return parts;
  };
}

// Critic, whitening, clipping, entropy, a KL loss, an adaptive controller,
// pretraining text and shadow weights.
PpoOptions EverythingInPpo() {
  PpoOptions options;
  options.rollout.whiten_rewards = true;
  options.loss.kl_loss = KlLoss::kK2;
  options.loss.kl_beta = 0.01;
  options.seed = 5;
  options.epochs = 3;
  options.minibatches = 2;
  options.micro_batch = 2;
  options.entropy_coef = 0.01;
  options.optimizer = testing::TestOptimizer(0.003);
  options.optimizer.max_grad_norm = 0.5;
  options.value_optimizer = testing::TestOptimizer(0.003);
  options.controller = *KlController::Adaptive(0.1, 0.5, 100);
  options.ptx_coef = 0.5;
  options.ptx_batch = 5;
  options.ema_decay = 0.9;
  options.total_steps = 3;
  return options;
}

MakeRank TinyPpo(double target_kl) {
  return [=](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    COX_ASSIGN_OR_RETURN(parts.policy, TinyEngine(HeadKind::kLanguageModel, 3));
    COX_ASSIGN_OR_RETURN(parts.critic, TinyEngine(HeadKind::kScalar, 4));
    parts.source = MakeExampleSource(Texts(12), 5, "ptx");
    PpoOptions options = EverythingInPpo();
    options.target_kl = target_kl;
    COX_ASSIGN_OR_RETURN(parts.trainer,
                         MakePpoTrainer(options, {.policy = parts.policy.get(),
                                                  .critic = parts.critic.get(),
                                                  .group = &group,
                                                  .ptx = parts.source.get(),
                                                  .heldout = Texts(6)}));
    return parts;
  };
}

// 22 answers of 1 to 6 tokens; one could not be scored, so that minibatches
// and shards are of different sizes.
BatchInput Answers(int64_t step) {
  BatchInput input;
  input.batch_sha256 = std::string(64, 'a');
  for (int32_t i = 0; i < 22; ++i) {
    Trajectory& row = input.trajectories.emplace_back();
    row.id = {{0, step, i / 8}, i / 2 % 4, i % 2};
    row.prompt_ids = {i % 16, (3 * i) % 16};
    for (int32_t t = 0; t <= (i + static_cast<int32_t>(step)) % 6; ++t) {
      row.response_ids.push_back((5 * i + 7 * t) % 16);
      row.behaviour_logprobs.push_back(-2.7f - 0.01f * static_cast<float>(t));
      row.reference_logprobs.push_back(-2.8f + 0.02f * static_cast<float>(i));
    }
    row.finish = i % 5 == 0 ? FinishReason::kLength : FinishReason::kStop;
    row.version = {0, step - 1};
    row.policy_hash = std::string(64, 'b');
    if (i != 9) {
      row.reward_total = 0.3 * (i % 7) - 1;
    }
  }
  return input;
}

BatchInput NoInput(int64_t) { return {}; }

class LearnerTorchTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { ASSERT_OK(InitTorch(EngineOptions())); }

  static void ExpectRanksDoNotChangeABit(const MakeRank& make,
                                         const testing::MakeInput& input,
                                         int64_t steps) {
    ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                         RunSteps(1, make, input, 1, steps));
    for (const int world : {2, 4}) {
      ASSERT_OK_AND_ASSIGN(const RunOutcome many,
                           RunSteps(world, make, input, 1, steps));
      testing::ExpectSameBits(many, one);
    }
  }
};

TEST_F(LearnerTorchTest, LossDecreases) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome run,
                       RunSteps(1, TinyLm(0.01), NoInput, 1, 60));
  // ln 16 = 2.77 at the start.
  EXPECT_NEAR(run.results.front().metrics.at("loss/lm"), 2.77, 0.1);
  EXPECT_LT(run.results.back().metrics.at("loss/lm"), 1.0);
}

TEST_F(LearnerTorchTest, RanksDoNotChangeABitOfALanguageModel) {
  ExpectRanksDoNotChangeABit(TinyLm(0.01), NoInput, 6);
  ExpectRanksDoNotChangeABit(TinyLm(0.01, /*micro_batch=*/1), NoInput, 6);
}

TEST_F(LearnerTorchTest, RanksDoNotChangeABitOfARewardModel) {
  ExpectRanksDoNotChangeABit(TinyRm(), NoInput, 4);
}

TEST_F(LearnerTorchTest, NeitherRanksNorAResumeChangeABitWithDropout) {
  ExpectRanksDoNotChangeABit(TinyRm(/*dropout=*/0.2), NoInput, 4);
  const MakeRank make = TinyLm(0.01, /*micro_batch=*/1, /*dropout=*/0.2);
  ExpectRanksDoNotChangeABit(make, NoInput, 6);
  ASSERT_OK_AND_ASSIGN(const RunOutcome whole,
                       RunSteps(1, make, NoInput, 1, 6));
  ASSERT_OK_AND_ASSIGN(const RunOutcome half, RunSteps(2, make, NoInput, 1, 3));
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome rest,
      RunSteps(4, make, NoInput, 4, 6, testing::RestoreFrom(half)));
  EXPECT_EQ(rest.weight_hash, whole.weight_hash);
  EXPECT_EQ(rest.state, whole.state);
  // Held-out text is measured without.
  ASSERT_OK_AND_ASSIGN(const RunOutcome off,
                       RunSteps(1, TinyLm(0.01, 1), NoInput, 1, 1));
  EXPECT_EQ(off.results[0].metrics.at("text/heldout_nll"),
            whole.results[0].metrics.at("text/heldout_nll"));
  EXPECT_NE(off.results[0].metrics.at("loss/lm"),
            whole.results[0].metrics.at("loss/lm"));
}

TEST_F(LearnerTorchTest, MicroBatchesChangeRoundingOnlyWithDropout) {
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome whole,
      RunSteps(1, TinyLm(0.01, /*micro_batch=*/0, 0.2), NoInput, 1, 1));
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome single,
      RunSteps(1, TinyLm(0.01, /*micro_batch=*/1, 0.2), NoInput, 1, 1));
  EXPECT_NEAR(single.results[0].metrics.at("loss/lm"),
              whole.results[0].metrics.at("loss/lm"), 1e-6);
  EXPECT_NEAR(single.results[0].metrics.at("grad_norm/lm"),
              whole.results[0].metrics.at("grad_norm/lm"), 1e-5);
}

TEST_F(LearnerTorchTest, RanksDoNotChangeABitInPpo) {
  ExpectRanksDoNotChangeABit(TinyPpo(/*target_kl=*/0), Answers, 3);
}

TEST_F(LearnerTorchTest, RanksDoNotChangeABitWhenPpoStopsEarly) {
  ExpectRanksDoNotChangeABit(TinyPpo(/*target_kl=*/1e-4), Answers, 3);
}

TEST_F(LearnerTorchTest, EqualRunsAndResumedRunsAreEqualBitForBit) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome whole,
                       RunSteps(1, TinyLm(0.001), NoInput, 1, 4));
  ASSERT_OK_AND_ASSIGN(const RunOutcome half,
                       RunSteps(1, TinyLm(0.001), NoInput, 1, 2));
  // With the number of ranks changed on the way.
  ASSERT_OK_AND_ASSIGN(
      const RunOutcome rest,
      RunSteps(2, TinyLm(0.001), NoInput, 3, 4, testing::RestoreFrom(half)));
  EXPECT_EQ(rest.weight_hash, whole.weight_hash);
  EXPECT_EQ(rest.state, whole.state);
}

}  // namespace
}  // namespace cox
