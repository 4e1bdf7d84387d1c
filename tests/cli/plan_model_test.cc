#include "cli/plan_model.h"

#include "gmock/gmock.h"
#include "lib/config/config.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

// Numbers that can be followed by hand: 1,000 parameters, 200 of them the
// table of 20 tokens x 10; two layers; attention costs 4 * length * 10 * 2.
RunSizes Sizes() {
  RunSizes s;
  s.parameters = 1000;
  s.hidden = 10;
  s.layers = 2;
  s.vocab = 20;
  s.prompt_tokens = 6;
  s.answer_tokens = 4;
  return s;
}

ClusterSpec Cluster() {
  ClusterSpec c;
  c.cores = 4;
  c.link_gbit_s = 8;       // 1 GB/s
  c.train_gflop_s = 1e-6;  // 1,000 FLOP/s
  c.score_gflop_s = 1e-6;
  c.decode_gflop_s = 1e-7;
  c.update_mparams_s = 0.001;  // 1 s for all parameters
  c.commit_ms = 500;
  c.unit_ms = 0;
  c.process_mb = 100;
  c.shared_mb = 50;
  return c;
}

cox::v1::RunConfig Config(const std::string& more) {
  LoadOptions load;
  load.path = "run.yaml";
  load.check_files = false;
  load.yaml_text =
      "tokenizer: {files: [t.txt]}\n"
      "generation: {max_prompt_tokens: 6, max_new_tokens: 4}\n" +
      more;
  const auto config = LoadConfig(load);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(DefaultConfig());
}

TEST(PlanModelTest, ForwardFlops) {
  // 10 tokens x (2 * 800 + 4 * 5 * 20) + 3 heads x 2 * 200.
  EXPECT_DOUBLE_EQ(ForwardFlops(Sizes(), 10, 5, 3), 20000 + 1200);
}

TEST(PlanModelTest, TextStage) {
  const auto config = Config(
      "stages: [pretrain]\nroles: {actors: 1, rewards: 1, learners: 2}\n"
      "pretrain: {train: [t.txt], steps: 7, batch: 4, sequence_length: 5}\n");
  const RunEstimate run = EstimateRun(config, Sizes(), Cluster());
  ASSERT_EQ(run.stages.size(), 1u);
  const StageEstimate& stage = run.stages[0];
  EXPECT_EQ(stage.steps, 7);
  // A rank has 2 sequences: 10 tokens, all of them with the head; three
  // times the forward's 20,000 + 10 * 400. The update: 1 s, and 4,000 bytes to
  // the other rank and back, halved.
  const double train = 3 * (20000 + 4000) / 1000.0;
  const double update = 1 + 4000 / 1e9;
  EXPECT_NEAR(stage.step_s, train + update + 0.5, 1e-9);
  EXPECT_EQ(stage.bottleneck, "learner");
  EXPECT_DOUBLE_EQ(stage.checkpoint_bytes, 12000);
  EXPECT_NEAR(run.total_s, 7 * stage.step_s, 1e-6);
  // Five processes, the coordinator a quarter of one; twice the trained
  // state: five times the weights; activations of a shard (here a rank's rows):
  // 10 tokens x 16 x 20 and 10 heads x 2 x 20, 4 bytes each.
  EXPECT_DOUBLE_EQ(stage.roles[1].memory_bytes, 100e6 + 20000 + 4 * 3600);
  EXPECT_NEAR(run.memory_bytes, 50e6 + 425e6 + 2 * (20000 + 4 * 3600), 1);
}

TEST(PlanModelTest, MoreProcessesThanCoresShareThem) {
  const auto config = Config(
      "stages: [pretrain]\nroles: {learners: 2}\n"
      "pretrain: {train: [t.txt], batch: 4, sequence_length: 5}\n");
  ClusterSpec one = Cluster();
  one.cores = 1;
  const double fast =
      EstimateRun(config, Sizes(), Cluster()).stages[0].step_s - 0.5;
  const double slow = EstimateRun(config, Sizes(), one).stages[0].step_s - 0.5;
  EXPECT_NEAR(slow, 2 * fast, 1e-6);
}

std::string PpoYaml(const std::string& schedule) {
  return "stages: [ppo]\nroles: {actors: 2, rewards: 1, learners: 1}\n"
         "model: {init: m}\nreward: {kind: lexicon, lexicon: l.tsv}\n"
         "schedule: {mode: " +
         schedule +
         "}\n"
         "ppo: {prompts: [p.jsonl], steps: 3, prompts_per_step: 8, "
         "unit_prompts: 2, epochs: 2, minibatches: 1}\n";
}

TEST(PlanModelTest, PpoStage) {
  const RunEstimate run =
      EstimateRun(Config(PpoYaml("sync")), Sizes(), Cluster());
  const StageEstimate& stage = run.stages[0];
  // A unit: 2 rows x 10 tokens, attention over 10, 8 heads.
  const double trunk = 20 * (1600 + 4 * 10 * 20);
  const double generate = (trunk + 8 * 400) / 100;  // decode: 100 FLOP/s
  const double score = (trunk + 8 * 400) / 1000;    // no reward model
  const double rollout = 2 * generate + score;  // two rounds, the last scored
  // 80 tokens, 32 heads: proximal, values, two epochs of both.
  const double both = 80 * (1600 + 800);
  const double heads = 32 * 400;
  const double train =
      ((both + heads) + both + 2 * 3 * ((both + heads) + both)) / 1000 +
      2 * 2 * 1.0;
  const double publish = 0.5 + 8000 / 1e9 + stage.payload_bytes / 1e9;
  EXPECT_NEAR(stage.step_s, rollout + train + publish, 1e-6);
  EXPECT_DOUBLE_EQ(stage.payload_bytes, 8 * (148 + 4 * 6 + 12 * 4));
  EXPECT_DOUBLE_EQ(stage.broadcast_bytes, 8000);
  EXPECT_EQ(stage.bottleneck, train >= rollout ? "learner" : "actor");
  // Overlapped: the slower of the two.
  const RunEstimate lagged =
      EstimateRun(Config(PpoYaml("fixed_lag")), Sizes(), Cluster());
  EXPECT_NEAR(lagged.stages[0].step_s, std::max(rollout, train) + publish,
              1e-6);
}

TEST(PlanModelTest, MeasuredLengthsReplaceTheBounds) {
  const auto config = Config(
      "stages: [sft]\nroles: {learners: 1}\n"
      "sft: {train: [t.txt], steps: 7, batch: 4, sequence_length: 5}\n");
  RunSizes sizes = Sizes();
  sizes.stages["sft"] = {4, 3, 2, 9, 0};
  const StageEstimate stage =
      EstimateRun(config, sizes, Cluster()).stages.front();
  EXPECT_EQ(stage.steps, 9);
  // 4 rows of 3 tokens, attention over 3, 8 heads.
  const double flops = 3 * (12 * (1600 + 4 * 3 * 20) + 8 * 400);
  EXPECT_NEAR(stage.step_s, flops / 1000 + 1 + 0.5, 1e-9);
}

TEST(PlanModelTest, ARateGivesBackTheStepItCameFrom) {
  for (const std::string kind : {"sft", "rm", "ppo"}) {
    const auto config = Config(
        "stages: [" + kind +
        "]\nroles: {learners: 2}\nmodel: {init: m}\n"
        "sft: {train: [t.txt], batch: 4, sequence_length: 5}\n"
        "rm: {comparisons: [c.jsonl], batch: 2}\n"
        "reward: {kind: lexicon, lexicon: l.tsv}\n"
        "ppo: {prompts: [p.jsonl], prompts_per_step: 8, unit_prompts: 2, "
        "epochs: 2, minibatches: 1}\n");
    ClusterSpec cluster = Cluster();
    cluster.stage_train_gflop_s[kind] =
        TrainRate(config, Sizes(), cluster, kind, /*step_s=*/100);
    const StageEstimate stage =
        EstimateRun(config, Sizes(), cluster).stages.front();
    EXPECT_NEAR(stage.roles[1].busy_s, 100, 1e-6) << kind;
  }
}

TEST(PlanModelTest, AnUpdateThatTakesAllLeavesAFifth) {
  const auto config = Config(
      "stages: [sft]\nroles: {learners: 1}\n"
      "sft: {train: [t.txt], batch: 1, sequence_length: 5}\n");
  const double rate = TrainRate(config, Sizes(), Cluster(), "sft", 0.5);
  // 5 tokens and heads in 0.1 s.
  EXPECT_NEAR(rate * 1e9, 3 * (5 * (1600 + 400) + 5 * 400) / 0.1, 1);
}

TEST(PlanModelTest, MeasuredMemoryReplacesTheArithmetic) {
  const auto config = Config(
      "stages: [pretrain]\nroles: {actors: 2, rewards: 1, learners: 3}\n"
      "numerics: {shards: 4}\n"
      "pretrain: {train: [t.txt], batch: 4, sequence_length: 5}\n");
  ClusterSpec cluster = Cluster();
  cluster.role_private = {{"learner-0", 300e6}, {"learner", 200e6},
                          {"actor", 50e6},      {"reward", 40e6},
                          {"coordinator", 7e6}, {"run", 3e6}};
  cluster.role_program = {{"learner", 5e6}, {"actor", 1e6}};
  const RunEstimate run = EstimateRun(config, Sizes(), cluster);
  const RoleEstimate& learner = run.stages[0].roles[1];
  EXPECT_DOUBLE_EQ(learner.memory_bytes, 300e6);
  EXPECT_DOUBLE_EQ(learner.all_memory_bytes, 700e6);
  EXPECT_DOUBLE_EQ(run.memory_bytes,
                   700e6 + 100e6 + 40e6 + 7e6 + 3e6 + 50e6 + 6e6);
}

TEST(PlanModelTest, SaysWhatDoesNotFit) {
  ClusterSpec small = Cluster();
  small.memory_gb = 0.1;
  const RunEstimate run = EstimateRun(Config(PpoYaml("sync")), Sizes(), small);
  ASSERT_FALSE(run.warnings.empty());
  EXPECT_THAT(run.warnings.back(), HasSubstr("memory"));
}

TEST(ClusterSpecTest, ReadsAndRefuses) {
  const auto spec = ParseClusterSpec(
      "nodes: 2\ncores: 16\nlink_gbit_s: 25 # between nodes\n"
      "train_gflop_s: 40\n",
      "c.yaml");
  ASSERT_OK(spec.status());
  EXPECT_EQ(spec->nodes, 2);
  EXPECT_EQ(spec->cores, 16);
  EXPECT_EQ(spec->train_gflop_s, 40);
  EXPECT_EQ(spec->score_gflop_s, 0);  // to be measured
  EXPECT_THAT(
      ParseClusterSpec("cores: 2\nnods: 1\n", "c.yaml").status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("c.yaml:2: unknown key 'nods'; known: nodes")));
  EXPECT_THAT(ParseClusterSpec("cores: many\n", "c.yaml").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("c.yaml:1: cores: expected a number")));
  EXPECT_THAT(ParseClusterSpec("cores: 0\n", "c.yaml").status(),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseClusterSpec("[1, 2]", "c.yaml").status(),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseClusterSpec("a: [", "c.yaml").status(),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace cox
