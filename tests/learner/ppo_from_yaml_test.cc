// Every algorithm of ppo as a person selects it: YAML -> options -> trainer ->
// steps on answers that a small policy sampled.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/stage_options_service.h"
#include "lib/config/config.h"
#include "lib/engine/fake.h"
#include "tests/learner/learner_testing.h"
#include "tests/learner/registered.h"

namespace cox {
namespace {

using testing::RankParts;
using testing::RunOutcome;
using testing::RunSteps;

constexpr int64_t kVocabulary = 7;
constexpr int32_t kPrompts = 6;
constexpr int32_t kSamples = 4;

std::shared_ptr<const Snapshot> StartPolicy() {
  return *FakeSnapshot(FakeModelConfig(kVocabulary, 7), "policy", 11);
}

// Answers to six prompts, four each, sampled from version `version`; the more
// 3s the better, except that all answers to prompt 1 score the same.
BatchInput SampleBatch(int64_t step, int64_t version) {
  std::unique_ptr<PolicyEngine> engine = MakeFakePolicyEngine();
  EXPECT_OK(engine->Load(StartPolicy()));
  GenerateRequest request;
  request.seed = 17;
  request.max_new_tokens = 6;
  request.pad_id = 1;
  request.sampling.eos_ids = {0};
  for (int32_t p = 0; p < kPrompts; ++p) {
    for (uint64_t k = 0; k < kSamples; ++k) {
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
    const auto prompt = static_cast<int32_t>(i / kSamples);
    row.id = {
        {0, step, prompt / 2}, prompt % 2, static_cast<int32_t>(i % kSamples)};
    row.prompt_ids = request.prompts[i];
    row.response_ids = generated->tokens[i];
    row.behaviour_logprobs = generated->logprobs[i];
    row.reference_logprobs = generated->logprobs[i];
    for (float& logprob : row.reference_logprobs) {
      logprob -= 0.02f * static_cast<float>(i % 5);
    }
    row.finish = generated->finish[i];
    row.version = {0, version};
    row.policy_hash = std::string(64, 'b');
    row.reward_total =
        prompt == 1
            ? 1.0
            : 0.01 * static_cast<double>(i) +
                  static_cast<double>(std::count(row.response_ids.begin(),
                                                 row.response_ids.end(), 3));
  }
  return input;
}

absl::StatusOr<PpoOptions> OptionsOf(std::vector<std::string> overrides) {
  LoadOptions load;
  load.yaml_text =
      "stages: [ppo]\n"
      "tokenizer: {kind: none, vocab_size: 7, eos_ids: [0], pad_id: 1}\n"
      "generation: {max_prompt_tokens: 2, max_new_tokens: 6}\n"
      "reward: {kind: table, path: t}\n"
      "ppo: {prompts: [p], steps: 4, prompts_per_step: 6, unit_prompts: 2, "
      "samples_per_prompt: 4, epochs: 2, missing_eos: none, "
      "optimizer: {lr: 1.0e-2}, value_optimizer: {lr: 1.0e-2}}\n";
  load.overrides = std::move(overrides);
  load.check_files = false;
  COX_ASSIGN_OR_RETURN(const cox::v1::RunConfig config, LoadConfig(load));
  return ReadPpo(config, 0, config.ppo().steps());
}

testing::MakeRank Make(const std::vector<std::string>& overrides) {
  return [overrides](Collective& group) -> absl::StatusOr<RankParts> {
    COX_ASSIGN_OR_RETURN(const PpoOptions options, OptionsOf(overrides));
    RankParts parts;
    parts.policy = MakeFakeTrainEngine();
    COX_RETURN_IF_ERROR(parts.policy->Load(StartPolicy()));
    if (!options.rollout.group.has_value()) {
      parts.critic = MakeFakeTrainEngine();
      COX_ASSIGN_OR_RETURN(
          auto critic,
          WithHead(*StartPolicy(), HeadKind::kScalar, "critic", 3));
      COX_RETURN_IF_ERROR(parts.critic->Load(critic));
    }
    COX_ASSIGN_OR_RETURN(parts.trainer,
                         MakePpoTrainer(options, {.policy = parts.policy.get(),
                                                  .critic = parts.critic.get(),
                                                  .group = &group}));
    return parts;
  };
}

struct YamlCase {
  std::string name;
  std::vector<std::string> overrides;
  // Step 2 trains on version 0 too: the schedule is one version behind.
  bool lagged = false;
  bool first_ratio_is_one = true;
};

class PpoFromYamlTest : public ::testing::TestWithParam<YamlCase> {};

TEST_P(PpoFromYamlTest, StepsWorkOnAnyNumberOfRanks) {
  const YamlCase& test = GetParam();
  const auto input = [&](int64_t step) {
    return SampleBatch(step, test.lagged ? 0 : step - 1);
  };
  ASSERT_OK_AND_ASSIGN(const RunOutcome one,
                       RunSteps(1, Make(test.overrides), input, 1, 2));
  testing::ExpectRegistered(one.results);
  for (const StepResult& result : one.results) {
    EXPECT_FALSE(result.skipped);
    for (const auto& [name, value] : result.metrics) {
      EXPECT_TRUE(std::isfinite(value)) << name;
    }
    if (test.first_ratio_is_one) {
      EXPECT_LE(result.metrics.at("policy/first_ratio_error"), 1e-5);
      EXPECT_EQ(result.metrics.at("policy/first_clipfrac"), 0.0);
    }
  }
  EXPECT_NE(one.weight_hash, StartPolicy()->content_hash);
  ASSERT_OK_AND_ASSIGN(const RunOutcome two,
                       RunSteps(2, Make(test.overrides), input, 1, 2));
  EXPECT_EQ(two.weight_hash, one.weight_hash);
  EXPECT_EQ(two.results[1].metrics, one.results[1].metrics);
}

std::vector<YamlCase> Cases() {
  const std::string lag = "schedule.mode=fixed_lag";
  std::vector<YamlCase> cases;
  for (const char* estimator : {"gae", "rloo", "grpo", "dr_grpo",
                                "reinforce_pp", "reinforce_pp_baseline"}) {
    for (const char* loss :
         {"ppo", "gspo", "cispo", "reinforce", "prob_diff"}) {
      const bool per_token = std::strcmp(estimator, "gae") == 0 ||
                             std::strcmp(estimator, "reinforce_pp") == 0;
      if (per_token && std::strcmp(loss, "gspo") == 0) continue;
      YamlCase test = {absl::StrCat(estimator, "_", loss),
                       {absl::StrCat("ppo.estimator=", estimator),
                        absl::StrCat("ppo.loss=", loss)}};
      // Its ratio is that to the behaviour policy.
      test.first_ratio_is_one = std::strcmp(loss, "prob_diff") != 0;
      cases.push_back(test);
    }
  }
  for (const char* mode : {"auto", "none", "token_truncate", "token_mask",
                           "seq_truncate", "seq_mask", "geometric_mask"}) {
    for (const char* schedule : {"sync", "fixed_lag"}) {
      YamlCase test = {absl::StrCat("is_", mode, "_", schedule),
                       {absl::StrCat("ppo.is_mode=", mode),
                        absl::StrCat("schedule.mode=", schedule)}};
      test.lagged = std::strcmp(schedule, "fixed_lag") == 0;
      if (test.name.find("mask") != std::string::npos) {
        test.overrides.push_back("ppo.is_low=0.5");
        test.overrides.push_back("ppo.is_high=3");
      }
      cases.push_back(test);
    }
  }
  for (const char* prox : {"recompute", "behaviour", "interpolate"}) {
    YamlCase test = {absl::StrCat("prox_", prox),
                     {absl::StrCat("ppo.prox=", prox), lag}};
    test.lagged = true;
    test.first_ratio_is_one = std::strcmp(prox, "recompute") == 0;
    cases.push_back(test);
  }
  cases.push_back({"dapo",
                   {"ppo.estimator=grpo", "ppo.clip_high=0.28", "ppo.kl_coef=0",
                    "ppo.dynamic_sampling=true", "ppo.train_prompts=3",
                    "ppo.overlong_cache=3"}});
  cases.push_back(
      {"dr_grpo_const",
       {"ppo.estimator=dr_grpo", "ppo.loss_agg=const", "ppo.kl_coef=0"}});
  cases.push_back({"gspo_as_published",
                   {"ppo.estimator=grpo", "ppo.loss=gspo",
                    "ppo.loss_agg=seq_mean_token_mean", "ppo.clip_low=3.0e-4",
                    "ppo.clip_high=4.0e-4"}});
  cases.push_back({"dual_clip", {"ppo.dual_clip=3"}});
  cases.push_back({"kl_loss_k2", {"ppo.kl_loss=k2", "ppo.kl_loss_coef=0.1"}});
  cases.push_back({"kl_loss_k3", {"ppo.kl_loss=k3", "ppo.kl_loss_coef=0.1"}});
  cases.push_back({"off_policy_mask", {"ppo.off_policy_delta=0.5"}});
  cases.push_back({"lmhp", {"ppo.profile=lmhp", "ppo.prompts_per_step=6"}});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Algorithms, PpoFromYamlTest,
                         ::testing::ValuesIn(Cases()),
                         [](const auto& instance) {
                           return instance.param.name;
                         });

// What each option must do to the numbers of the step.
double MetricWith(const std::vector<std::string>& overrides,
                  const std::string& metric, int64_t steps = 1,
                  bool lagged = false) {
  const auto run = RunSteps(
      1, Make(overrides),
      [&](int64_t step) { return SampleBatch(step, lagged ? 0 : step - 1); }, 1,
      steps);
  EXPECT_OK(run);
  return run->results.back().metrics.at(metric);
}

TEST(PpoOptionsTest, DynamicSamplingDropsEqualGroupsInUnitOrder) {
  const std::vector<std::string> dynamic = {"ppo.estimator=grpo",
                                            "ppo.dynamic_sampling=true"};
  EXPECT_EQ(MetricWith(dynamic, "rollout/filtered"), 4.0);
  EXPECT_EQ(MetricWith(dynamic, "rollout/trained_prompts"), 5.0);
  EXPECT_EQ(MetricWith(dynamic, "rollout/reserve"), 0.0);
  std::vector<std::string> capped = dynamic;
  capped.push_back("ppo.train_prompts=3");
  EXPECT_EQ(MetricWith(capped, "rollout/trained_prompts"), 3.0);
  EXPECT_EQ(MetricWith(capped, "rollout/reserve"), 8.0);
  // The first three that differ are prompts 0, 2 and 3: the refill is the batch
  // that has only those.
  const auto only = [](const std::vector<int32_t>& prompts) {
    BatchInput input = SampleBatch(1, 0);
    std::erase_if(input.trajectories, [&](const Trajectory& row) {
      const int32_t prompt = row.id.unit.index * 2 + row.id.prompt;
      return std::find(prompts.begin(), prompts.end(), prompt) == prompts.end();
    });
    return input;
  };
  ASSERT_OK_AND_ASSIGN(PpoOptions options, OptionsOf(capped));
  ASSERT_OK_AND_ASSIGN(
      const RolloutBatch all,
      MakeRolloutBatch(1, SampleBatch(1, 0).trajectories, options.rollout));
  ASSERT_OK_AND_ASSIGN(
      const RolloutBatch three,
      MakeRolloutBatch(1, only({0, 2, 3}).trajectories, options.rollout));
  EXPECT_EQ(all.trained_count, three.trained_count);
  size_t next = 0;
  for (size_t b = 0; b < all.sequences.size(); ++b) {
    if (all.trained[b] == 0) continue;
    EXPECT_EQ(all.sequences[b].ids, three.sequences[next].ids);
    EXPECT_EQ(all.scores[b], three.scores[next]);
    ++next;
  }
  EXPECT_EQ(next, 12u);
}

TEST(PpoOptionsTest, OverlongPenaltyFollowsTheLength) {
  ASSERT_OK_AND_ASSIGN(const PpoOptions plain, OptionsOf({}));
  ASSERT_OK_AND_ASSIGN(const PpoOptions soft,
                       OptionsOf({"ppo.overlong_cache=4"}));
  const std::vector<Trajectory> rows = SampleBatch(1, 0).trajectories;
  ASSERT_OK_AND_ASSIGN(const RolloutBatch a,
                       MakeRolloutBatch(1, rows, plain.rollout));
  ASSERT_OK_AND_ASSIGN(const RolloutBatch b,
                       MakeRolloutBatch(1, rows, soft.rollout));
  bool penalised = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double over =
        std::max(0.0, static_cast<double>(rows[i].response_ids.size()) - 2.0);
    EXPECT_DOUBLE_EQ(b.scores[i], a.scores[i] - over / 4);
    penalised |= over > 0;
  }
  EXPECT_TRUE(penalised);
  // The metric is the score before any penalty.
  EXPECT_EQ(b.metrics.at("objective/scores"), a.metrics.at("objective/scores"));
}

TEST(PpoOptionsTest, ModesOfOldAnswersDiffer) {
  const std::vector<std::string> lag = {"schedule.mode=fixed_lag"};
  const auto with = [&](std::string more) {
    std::vector<std::string> all = lag;
    all.push_back(std::move(more));
    return all;
  };
  // Step 2 meets answers of version 0 with weights of version 1.
  const double mean = MetricWith(lag, "offpolicy/w_mean", 2, true);
  EXPECT_NE(mean, 1.0);
  EXPECT_EQ(MetricWith(with("ppo.prox=behaviour"), "offpolicy/w_mean", 2, true),
            1.0);
  EXPECT_GT(MetricWith(with("ppo.prox=behaviour"), "policy/first_ratio_error",
                       2, true),
            1e-4);
  const auto loss = [&](const std::vector<std::string>& overrides) {
    return MetricWith(overrides, "loss/policy", 2, true);
  };
  EXPECT_EQ(loss(lag), loss(with("ppo.is_mode=token_truncate")));
  EXPECT_NE(loss(lag), loss(with("ppo.is_mode=none")));
  EXPECT_NE(loss(lag), loss(with("ppo.is_mode=seq_truncate")));
  EXPECT_NE(loss(lag), loss(with("ppo.prox=interpolate")));
}

TEST(PpoOptionsTest, AdaptiveKlStopsAtItsFloor) {
  const std::vector<std::string> adaptive = {
      "ppo.kl_control=adaptive", "ppo.kl_coef=0.1", "ppo.kl_target=1000",
      "ppo.kl_horizon=24"};
  const double free = MetricWith(adaptive, "kl_coef");
  EXPECT_NEAR(free, 0.08, 1e-12);
  std::vector<std::string> floored = adaptive;
  floored.push_back("ppo.kl_min=0.09");
  EXPECT_EQ(MetricWith(floored, "kl_coef"), 0.09);
}

}  // namespace
}  // namespace cox
