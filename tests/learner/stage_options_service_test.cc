#include "learner/stage_options_service.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/config/config.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

TEST(StageOptionsTest, TheDefaultsAreAValidConfigurationOfEveryTrainer) {
  const cox::v1::RunConfig config = DefaultConfig();
  EXPECT_OK(ReadLm(config.pretrain(), 10));
  EXPECT_OK(ReadRm(config, 1, 10));
  ASSERT_OK_AND_ASSIGN(const PpoOptions ppo, ReadPpo(config, 2, 10));
  EXPECT_OK(ppo.Validate());
  EXPECT_FALSE(ppo.rollout.group.has_value());
  EXPECT_EQ(ppo.rollout.stage, 2);
  // 10 steps x 4 epochs x 2 minibatches.
  EXPECT_EQ(ppo.optimizer.schedule.total, 80);
  EXPECT_EQ(ppo.t_max, 24.0);
  EXPECT_TRUE(ppo.rollout.needs_reference);
}

TEST(StageOptionsTest, ReadsEveryChoiceOfTheSchema) {
  for (const char* estimator : {"gae", "rloo", "grpo", "dr_grpo",
                                "reinforce_pp", "reinforce_pp_baseline"}) {
    for (const char* loss : {"ppo", "gspo", "cispo", "reinforce"}) {
      for (const char* agg : {"token_mean", "seq_mean_token_mean",
                              "seq_mean_token_sum", "const"}) {
        cox::v1::RunConfig config = DefaultConfig();
        config.mutable_ppo()->set_estimator(estimator);
        config.mutable_ppo()->set_loss(loss);
        config.mutable_ppo()->set_loss_agg(agg);
        ASSERT_OK_AND_ASSIGN(const PpoOptions ppo, ReadPpo(config, 0, 1));
        EXPECT_EQ(ppo.rollout.group.has_value(),
                  std::string(estimator) != "gae");
      }
    }
  }
  for (const char* mode : {"sync", "fixed_lag", "streaming"}) {
    cox::v1::RunConfig config = DefaultConfig();
    config.mutable_schedule()->set_mode(mode);
    EXPECT_OK(ReadPpo(config, 0, 1));
  }
  for (const char* kl : {"none", "k2", "k3"}) {
    cox::v1::RunConfig config = DefaultConfig();
    config.mutable_ppo()->set_kl_loss(kl);
    config.mutable_ppo()->set_kl_control("adaptive");
    config.mutable_ppo()->set_kl_estimator("k3");
    config.mutable_ppo()->set_score_position("after_last");
    config.mutable_ppo()->set_missing_eos("subtract");
    EXPECT_OK(ReadPpo(config, 0, 1));
  }
  for (const char* kind : {"adamw", "tf_adam"}) {
    for (const char* schedule : {"constant", "linear", "cosine"}) {
      cox::v1::RunConfig config = DefaultConfig();
      config.mutable_sft()->mutable_optimizer()->set_kind(kind);
      config.mutable_sft()->mutable_optimizer()->set_schedule(schedule);
      EXPECT_OK(ReadLm(config.sft(), 5));
    }
  }
}

TEST(StageOptionsTest, EveryFamilyHasAValidModelByDefault) {
  for (const char* type :
       {"gpt2", "llama", "qwen2", "qwen3", "instruct_encdec"}) {
    cox::v1::RunConfig config = DefaultConfig();
    config.mutable_model()->set_type(type);
    ASSERT_OK_AND_ASSIGN(const ModelConfig model,
                         ModelFromSettings(config.model(), 100, {0}, 1));
    EXPECT_EQ(model.vocab_size, 100);
    // The configuration survives its own file: content hashes depend on it.
    ASSERT_OK_AND_ASSIGN(const ModelConfig again,
                         ModelConfig::FromJson(model.ToJson()));
    EXPECT_EQ(again.ToJson(), model.ToJson()) << type;
  }
}

}  // namespace
}  // namespace cox
