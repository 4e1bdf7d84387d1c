#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/config/config.h"

namespace cox {
namespace {

// Every stage runs, all files are named.
constexpr char kFull[] =
    "stages: [pretrain, sft, collect, rm, ppo, eval]\n"
    "tokenizer: {files: [t]}\n"
    "reward: {lexicon: l}\n"
    "pretrain: {train: [a]}\n"
    "sft: {train: [b]}\n"
    "collect: {prompts: [c]}\n"
    "ppo: {prompts: [d]}\n"
    "eval: {prompts: [e]}\n";

std::string IssuesWith(std::vector<std::string> overrides) {
  LoadOptions options;
  options.yaml_text = kFull;
  options.overrides = std::move(overrides);
  options.check_files = false;
  const auto config = LoadConfig(options);
  return config.ok() ? "" : std::string(config.status().message());
}

TEST(CheckConfigTest, AcceptsAFullRun) { EXPECT_EQ(IssuesWith({}), ""); }

TEST(CheckConfigTest, AcceptsVariants) {
  EXPECT_EQ(IssuesWith({"roles.device=cuda"}), "");
  EXPECT_EQ(IssuesWith({"ppo.estimator=rloo", "ppo.samples_per_prompt=2"}), "");
  EXPECT_EQ(IssuesWith({"ppo.estimator=reinforce_pp"}), "");
  EXPECT_EQ(IssuesWith({"stages=[eval]", "generation.top_p=0.9"}), "");
  EXPECT_EQ(IssuesWith({"stages=[eval]", "generation.min_new_tokens=2"}), "");
  EXPECT_EQ(IssuesWith({"ppo.kl_control=adaptive", "ppo.kl_horizon=26"}), "");
  EXPECT_EQ(IssuesWith({"ppo.kl_control=fixed", "ppo.kl_horizon=1"}), "");
  for (const char* estimator :
       {"rloo", "grpo", "dr_grpo", "reinforce_pp_baseline"}) {
    EXPECT_EQ(IssuesWith({"ppo.loss=gspo", "ppo.samples_per_prompt=2",
                          absl::StrCat("ppo.estimator=", estimator)}),
              "");
  }
  EXPECT_EQ(IssuesWith({"reward.kind=grpc", "reward.address='[::1]:7'"}), "");
}

// Overrides, the field that the message names, words of the message.
using Case = std::tuple<std::vector<std::string>, std::string, std::string>;

class CheckConfigRuleTest : public ::testing::TestWithParam<Case> {};

TEST_P(CheckConfigRuleTest, NamesTheFieldAndTheReason) {
  const auto& [overrides, field, words] = GetParam();
  const std::string issues = IssuesWith(overrides);
  EXPECT_THAT(issues, ::testing::HasSubstr(absl::StrCat(": ", field, ": ")));
  EXPECT_THAT(issues, ::testing::HasSubstr(words));
  EXPECT_EQ(issues.find('\n'), std::string::npos) << issues;
}

INSTANTIATE_TEST_SUITE_P(
    Rules, CheckConfigRuleTest,
    ::testing::Values(
        Case{{"name=../x"}, "name", "cannot name a folder"},
        Case{{"stages=[]"}, "stages", "at least one of pretrain"},
        Case{{"stages=[sft,pretrain]"}, "stages[1]", "before 'sft'"},
        Case{{"stages=[sft,sft]"}, "stages[1]", "already listed"},
        Case{{"model.heads=3"}, "model.heads", "does not divide"},
        Case{{"model.type=llama", "model.hidden=12"}, "model.heads", "even"},
        Case{{"model.type=llama", "model.kv_heads=3"},
             "model.kv_heads",
             "does not divide"},
        Case{{"model.kv_heads=2"}, "model.kv_heads", "gpt2"},
        Case{{"model.encoder_layers=2"}, "model.encoder_layers", "no encoder"},
        Case{{"tokenizer.pad_token='<|endoftext|>'"},
             "tokenizer.pad_token",
             "must differ"},
        Case{{"tokenizer.files=[]"}, "tokenizer.files", "needs files"},
        Case{{"tokenizer.vocab_size=200"}, "tokenizer.vocab_size", "258"},
        Case{{"tokenizer.kind=file"}, "tokenizer.path", "tokenizer.json"},
        Case{{"generation.max_prompt_tokens=120"},
             "generation.max_new_tokens",
             "exceed model.max_positions 128"},
        Case{{"generation.max_new_tokens=9223372036854775807"},
             "generation.max_new_tokens",
             "exceed model.max_positions"},
        Case{{"stages=[eval]", "generation.min_new_tokens=25"},
             "generation.min_new_tokens",
             "exceeds"},
        Case{{"pretrain.sequence_length=129"},
             "pretrain.sequence_length",
             "exceeds model.max_positions 128"},
        Case{{"sft.sequence_length=129"}, "sft.sequence_length", "exceeds"},
        Case{{"ppo.ptx.coef=1", "ppo.ptx.sequence_length=129"},
             "ppo.ptx.sequence_length",
             "exceeds"},
        Case{{"stages=[ppo]"}, "reward.path", "needs stage rm"},
        Case{{"stages=[sft,rm]"}, "rm.comparisons", "needs stage collect"},
        Case{{"stages=[rm]", "rm.comparisons=[x]", "sft.train=[]"},
             "rm.normalize",
             "needs rm.demonstrations"},
        Case{{"reward.kind=table"}, "reward.path", "table file"},
        Case{{"reward.lexicon="}, "reward.lexicon", "labeller"},
        Case{{"reward.kind=grpc"}, "reward.address", "host:port"},
        Case{{"reward.kind=grpc", "reward.address=a:b"},
             "reward.address",
             "found 'a:b'"},
        Case{{"pretrain.train=[]"}, "pretrain.train", "needs training files"},
        Case{{"sft.optimizer.warmup_steps=501"},
             "sft.optimizer.warmup_steps",
             "exceeds sft.steps 500"},
        Case{{"collect.prompts=[]"}, "collect.prompts", "needs prompt"},
        Case{{"eval.prompts=[]"}, "eval.prompts", "needs prompt"},
        Case{{"generation.top_k=5"}, "generation.top_k", "truncated"},
        Case{{"generation.top_p=0.9"}, "generation.top_p", "set it to 1"},
        Case{{"generation.min_p=0.1"}, "generation.min_p", "§10"},
        Case{{"generation.min_new_tokens=1"},
             "generation.min_new_tokens",
             "set it to 0"},
        Case{{"generation.forbid_ids=[3]"},
             "generation.forbid_ids",
             "set it to []"},
        Case{{"generation.repetition_penalty=1.2"},
             "generation.repetition_penalty",
             "for evaluation only"},
        Case{{"generation.stop=['']"},
             "generation.stop[0]",
             "1 to 1024 bytes"}));

INSTANTIATE_TEST_SUITE_P(
    PpoRules, CheckConfigRuleTest,
    ::testing::Values(
        Case{{"ppo.prompts=[]"}, "ppo.prompts", "needs prompt"},
        Case{{"ppo.unit_prompts=7"}, "ppo.unit_prompts", "does not divide"},
        Case{{"ppo.minibatches=129"}, "ppo.minibatches", "exceeds the 128"},
        Case{{"ppo.estimator=grpo"}, "ppo.samples_per_prompt", "at least 2"},
        // 40 steps x 4 epochs x 2 minibatches
        Case{{"ppo.optimizer.warmup_steps=321"},
             "ppo.optimizer.warmup_steps",
             "exceeds the 320"},
        Case{{"ppo.estimator=reinforce_pp", "ppo.value_warmup_steps=1"},
             "ppo.value_warmup_steps",
             "no critic"},
        Case{{"ppo.value_warmup_steps=40"},
             "ppo.value_warmup_steps",
             "leaves none of the 40"},
        Case{{"ppo.dual_clip=0.5"}, "ppo.dual_clip", "at least 1"},
        Case{{"ppo.dual_clip=3", "ppo.loss=cispo"}, "ppo.dual_clip", "cispo"},
        Case{{"ppo.clip_low=1"}, "ppo.clip_low", "below 1"},
        Case{{"ppo.score_position=after_last", "ppo.estimator=reinforce_pp"},
             "ppo.score_position",
             "critic"},
        Case{{"ppo.max_new_tokens_const=9"},
             "ppo.max_new_tokens_const",
             "loss_agg const"},
        Case{{"ppo.kl_control=adaptive", "ppo.kl_coef=0"},
             "ppo.kl_coef",
             "must not be 0"},
        Case{{"ppo.kl_control=adaptive", "ppo.kl_target=0"},
             "ppo.kl_target",
             "must not be 0"},
        // A fifth of 128 answers is 25.6.
        Case{{"ppo.kl_control=adaptive", "ppo.kl_horizon=25"},
             "ppo.kl_horizon",
             "at least a fifth of the 128"},
        Case{{"ppo.loss=gspo"}, "ppo.loss", "estimator rloo, grpo, dr_grpo"},
        Case{{"ppo.loss=gspo", "ppo.estimator=reinforce_pp"},
             "ppo.loss",
             "reinforce_pp gives one per token"},
        Case{{"ppo.kl_loss=k2"}, "ppo.kl_loss_coef", "no effect"},
        Case{{"ppo.kl_loss_coef=1"}, "ppo.kl_loss_coef", "no effect"},
        Case{{"stages=[sft,collect,rm,ppo]", "pretrain.train=[]",
              "ppo.ptx.coef=1"},
             "ppo.ptx.train",
             "needs files"},
        Case{{"limits.suspect_s=2"}, "limits.suspect_s", "must exceed"}));

INSTANTIATE_TEST_SUITE_P(
    AlgorithmRules, CheckConfigRuleTest,
    ::testing::Values(
        Case{{"stages=[sft,dpo]"}, "dpo.comparisons", "needs stage collect"},
        Case{{"stages=[sft,kto]"}, "kto.train", "needs stage collect"},
        Case{{"stages=[sft,rft]"}, "rft.comparisons", "needs stage collect"},
        Case{{"stages=[sft,collect,rft]", "rft.select=reward"},
             "rft.select",
             "needs stage rm"},
        Case{{"stages=[sft,dpo,collect]"}, "stages[2]", "before 'dpo'"},
        Case{{"stages=[sft,collect,dpo]", "dpo.kind=ipo",
              "dpo.label_smoothing=0.1"},
             "dpo.label_smoothing",
             "not to ipo"},
        Case{{"stages=[sft,collect,dpo]", "dpo.label_smoothing=0.5"},
             "dpo.label_smoothing",
             "at most"},
        Case{
            {"stages=[sft,collect,dpo]", "dpo.beta=0"}, "dpo.beta", "at least"},
        Case{{"stages=[sft,collect,kto]", "kto.lambda_desirable=0",
              "kto.lambda_undesirable=0"},
             "kto.lambda_desirable",
             "nothing to learn"},
        Case{{"ppo.kl_loss=k1"}, "ppo.kl_loss", "expectation 0"},
        Case{{"ppo.is_low=0.5"}, "ppo.is_low", "not to auto"},
        Case{{"ppo.is_mode=token_mask", "ppo.is_low=3"},
             "ppo.is_low",
             "exceeds ppo.is_high 2"},
        Case{{"ppo.is_high=0"}, "ppo.is_high", "weight 0"},
        Case{{"ppo.is_mode=token_mask", "ppo.loss=prob_diff"},
             "ppo.is_mode",
             "prob_diff"},
        Case{{"ppo.prox=interpolate"}, "ppo.prox", "older versions"},
        Case{{"ppo.prox=behaviour", "ppo.is_mode=seq_mask"},
             "ppo.is_mode",
             "weight proximal / behaviour is 1"},
        Case{{"schedule.mode=fixed_lag", "ppo.off_policy_delta=0.5",
              "ppo.is_mode=none"},
             "ppo.off_policy_delta",
             "unbounded"},
        Case{{"ppo.dynamic_sampling=true"},
             "ppo.dynamic_sampling",
             "at least 2"},
        Case{{"ppo.train_prompts=4"}, "ppo.train_prompts", "no effect"},
        Case{{"ppo.dynamic_sampling=true", "ppo.samples_per_prompt=2",
              "ppo.train_prompts=129"},
             "ppo.train_prompts",
             "exceeds ppo.prompts_per_step 128"},
        Case{{"ppo.overlong_max=20"}, "ppo.overlong_max", "no effect"},
        Case{{"ppo.overlong_cache=25"}, "ppo.overlong_cache", "exceeds the 24"},
        Case{{"ppo.overlong_cache=4", "ppo.overlong_max=40"},
             "ppo.overlong_max",
             "begins after 36"},
        Case{{"ppo.kl_min=0.01"}, "ppo.kl_min", "adaptive"},
        Case{{"ppo.kl_control=adaptive", "ppo.kl_min=1"},
             "ppo.kl_min",
             "exceeds ppo.kl_coef"}));

TEST(CheckConfigTest, AcceptsEveryAlgorithm) {
  EXPECT_EQ(IssuesWith({"stages=[pretrain,sft,collect,rm,rft,dpo,kto,ppo,eval]",
                        "rft.select=reward"}),
            "");
  EXPECT_EQ(IssuesWith({"stages=[sft,collect,kto,dpo,rft,eval]"}), "");
  EXPECT_EQ(IssuesWith({"stages=[dpo]", "dpo.comparisons=[x]"}), "");
  EXPECT_EQ(IssuesWith({"stages=[kto]", "kto.train=[x]"}), "");
  EXPECT_EQ(IssuesWith({"schedule.mode=streaming", "ppo.prox=interpolate",
                        "ppo.is_mode=geometric_mask", "ppo.is_low=0.5"}),
            "");
}

TEST(CheckConfigTest, ProblemsHaveTheirPlaceInTheFile) {
  LoadOptions options;
  options.path = "/w/run.yaml";
  options.yaml_text = absl::StrCat(kFull, "dpo:\n  beta: 0\n");
  options.check_files = false;
  EXPECT_EQ(LoadConfig(options).status().message(),
            "/w/run.yaml:10:9: dpo.beta: must be at least 1e-06, is 0");
}

TEST(ProfileTest, AFamilyHasItsOwnDefaultOfDropout) {
  const auto dropout = [](std::vector<std::string> overrides) {
    LoadOptions options;
    options.yaml_text =
        "sft: {train: [d]}\nstages: [sft]\n"
        "tokenizer: {files: [t]}\n";
    options.overrides = std::move(overrides);
    options.check_files = false;
    const auto config = LoadConfig(options);
    EXPECT_TRUE(config.ok()) << config.status();
    return config.ok() ? config->model().dropout() : -1;
  };
  EXPECT_EQ(dropout({}), 0);
  EXPECT_EQ(dropout({"model.dropout=0.2"}), 0.2);
  EXPECT_EQ(dropout({"model.type=instruct_encdec"}), 0.1);
  EXPECT_EQ(dropout({"model.type=instruct_encdec", "model.dropout=0"}), 0);
  EXPECT_EQ(dropout({"model.type=instruct_encdec", "ppo.profile=tldr"}), 0.1);
  // A run that was recorded before the key existed had none.
  LoadOptions old;
  old.yaml_text =
      "sft: {train: [d]}\nstages: [sft]\ntokenizer: {files: [t]}\n"
      "model: {type: instruct_encdec}\n";
  old.check_files = false;
  old.recorded = true;
  const auto config = LoadConfig(old);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model().dropout(), 0);
}

TEST(ProfileTest, LiesBelowWhatIsWritten) {
  const auto load = [](std::vector<std::string> overrides) {
    LoadOptions options;
    options.yaml_text = absl::StrCat(
        "ppo: {prompts: [d], unit_prompts: 64}\nstages: [ppo]\n"
        "tokenizer: {files: [t]}\nreward: {path: r}\n"
        "generation: {max_new_tokens: 9}\n");
    options.overrides = std::move(overrides);
    options.check_files = false;
    const auto config = LoadConfig(options);
    EXPECT_TRUE(config.ok()) << config.status();
    return *config;
  };
  const cox::v1::RunConfig plain = load({});
  EXPECT_EQ(plain.ppo().prompts_per_step(), 128);
  const cox::v1::RunConfig lmhp = load({"ppo.profile=lmhp", "ppo.epochs=2"});
  EXPECT_EQ(lmhp.ppo().prompts_per_step(), 512);
  EXPECT_EQ(lmhp.ppo().unit_prompts(), 64);
  EXPECT_EQ(lmhp.ppo().epochs(), 2);
  EXPECT_EQ(lmhp.ppo().kl_control(), "adaptive");
  EXPECT_EQ(lmhp.ppo().optimizer().kind(), "tf_adam");
  EXPECT_EQ(lmhp.generation().temperature(), 0.7);
  EXPECT_EQ(lmhp.generation().max_new_tokens(), 9);
  EXPECT_EQ(load({"ppo.profile=instructgpt"}).ppo().minibatches(), 8);
  EXPECT_EQ(load({"ppo.profile=tldr"}).ppo().optimizer().lr(), 3e-6);
  // What `cox config show` prints says it all.
  LoadOptions printed;
  printed.yaml_text = PrintConfig(lmhp);
  printed.check_files = false;
  const auto again = LoadConfig(printed);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(DiffConfigs(*again, lmhp).empty());
}

TEST(CheckConfigTest, ChecksIdsWithoutATokenizer) {
  const std::vector<std::string> ids = {"stages=[ppo]", "reward.kind=table",
                                        "reward.path=t", "tokenizer.kind=none",
                                        "tokenizer.vocab_size=10"};
  const auto with = [&](std::string more) {
    std::vector<std::string> all = ids;
    all.push_back(std::move(more));
    return IssuesWith(all);
  };
  EXPECT_EQ(with("tokenizer.eos_ids=[1]"), "");
  EXPECT_THAT(with("tokenizer.eos_ids=[]"),
              ::testing::HasSubstr("ids that end"));
  EXPECT_THAT(with("tokenizer.eos_ids=[1, 10]"),
              ::testing::HasSubstr("eos_ids[1]: 10 is outside"));
  EXPECT_THAT(with("tokenizer.eos_ids=[0]"),
              ::testing::HasSubstr("eos_ids[0]: must differ"));
}

TEST(CheckConfigTest, ShardsAreAPowerOfTwoAndEnoughForAllRanks) {
  EXPECT_EQ(IssuesWith({"numerics.shards=4", "roles.learners=4"}), "");
  EXPECT_EQ(IssuesWith({"numerics.shards=4", "roles.learners=3"}), "");
  EXPECT_THAT(IssuesWith({"numerics.shards=6"}),
              ::testing::HasSubstr("6 is not a power of two"));
  EXPECT_THAT(IssuesWith({"roles.learners=4"}),
              ::testing::HasSubstr("4 ranks are more than "
                                   "numerics.shards 2"));
}

TEST(CheckConfigTest, LeavesTheShapeToAModelFolder) {
  EXPECT_EQ(IssuesWith({"model.init=m", "model.heads=3",
                        "generation.max_new_tokens=500"}),
            "");
}

TEST(CheckConfigTest, ChecksMessagesThatWereNotLoaded) {
  cox::v1::RunConfig config = DefaultConfig();
  config.mutable_ppo()->set_epochs(0);
  config.mutable_ppo()->set_loss("x");
  const absl::Status status = ValidateConfig(config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "ppo.loss: must be one of ppo, gspo, cispo, reinforce, prob_diff, "
            "is 'x'\n"
            "ppo.epochs: must be at least 1, is 0");
  // Nothing set at all must not divide by zero.
  EXPECT_FALSE(ValidateConfig(cox::v1::RunConfig()).ok());
}

}  // namespace
}  // namespace cox
