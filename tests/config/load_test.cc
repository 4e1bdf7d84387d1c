#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/config/config.h"

namespace cox {
namespace {

using ::testing::HasSubstr;

// Valid, and short: prompts are ids, rewards come from a table.
constexpr char kBase[] =
    "stages: [ppo]\n"
    "tokenizer: {kind: none, eos_ids: [1]}\n"
    "reward: {kind: table, path: t.json}\n";

// The message for `yaml` as /w/run.yaml (files are not looked at); "" if it
// loads.
std::string ErrorOf(const std::string& yaml,
                    std::vector<std::string> overrides = {}) {
  LoadOptions options;
  options.path = "/w/run.yaml";
  options.yaml_text = yaml;
  options.overrides = std::move(overrides);
  options.check_files = false;
  const auto config = LoadConfig(options);
  if (config.ok()) return "";
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

cox::v1::RunConfig Load(const std::string& yaml,
                        std::vector<std::string> overrides = {}) {
  LoadOptions options;
  options.path = "/w/run.yaml";
  options.yaml_text = yaml;
  options.overrides = std::move(overrides);
  options.check_files = false;
  auto config = LoadConfig(options);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *std::move(config) : cox::v1::RunConfig();
}

// kBase plus a ppo section; the section starts at line 4.
std::string WithPpo(const std::string& lines) {
  return absl::StrCat(kBase, "ppo:\n  prompts: [p.jsonl]\n", lines);
}

TEST(LoadConfigTest, FillsDefaultsFromTheSchema) {
  const auto c = Load(WithPpo(""));
  EXPECT_EQ(c.name(), "run");
  EXPECT_EQ(c.seed(), 1u);
  EXPECT_EQ(c.model().hidden(), 128);
  EXPECT_EQ(c.ppo().estimator(), "gae");
  EXPECT_DOUBLE_EQ(c.ppo().kl_coef(), 0.05);
  EXPECT_DOUBLE_EQ(c.ppo().value_optimizer().eps(), 1e-8);
  EXPECT_TRUE(c.ppo().whiten_advantages());
  EXPECT_FALSE(c.ppo().whiten_rewards());
  EXPECT_EQ(c.limits().max_payload_bytes(), 67108864);
}

TEST(LoadConfigTest, ReadsEveryKindOfValue) {
  const auto c = Load(WithPpo("  kl_coef: 1e-2\n  whiten_rewards: true\n"
                              "  optimizer: {lr: 3, schedule: 'cosine'}\n"
                              "  steps: +7\n") +
                      "name: \"7\"\nseed: 18446744073709551615\n"
                      "model:\n  init:\n");
  EXPECT_DOUBLE_EQ(c.ppo().kl_coef(), 0.01);
  EXPECT_TRUE(c.ppo().whiten_rewards());
  EXPECT_DOUBLE_EQ(c.ppo().optimizer().lr(), 3);
  EXPECT_EQ(c.ppo().optimizer().schedule(), "cosine");
  EXPECT_EQ(c.ppo().steps(), 7);
  EXPECT_EQ(c.name(), "7");
  EXPECT_EQ(c.seed(), 18446744073709551615u);
  EXPECT_EQ(c.model().init(), "");
}

TEST(LoadConfigTest, NamesTheNearestFieldForAnUnknownOne) {
  EXPECT_EQ(ErrorOf(WithPpo("  kl_coeff: 0.1\n")),
            "/w/run.yaml:6:3: unknown field 'ppo.kl_coeff' (did you mean "
            "'kl_coef'?)");
}

TEST(LoadConfigTest, NamesTheSectionOfAMisplacedField) {
  EXPECT_EQ(ErrorOf(std::string(kBase) + "kl_horizon: 5\n"),
            "/w/run.yaml:4:1: unknown field 'kl_horizon' (did you mean "
            "'ppo.kl_horizon'?)");
}

TEST(LoadConfigTest, MakesNoFarFetchedSuggestion) {
  EXPECT_EQ(ErrorOf(std::string(kBase) + "zzzzzzzz: 5\n"),
            "/w/run.yaml:4:1: unknown field 'zzzzzzzz'");
}

TEST(LoadConfigTest, ReportsTypeErrorsAtTheValue) {
  EXPECT_EQ(ErrorOf(WithPpo("  steps: many\n")),
            "/w/run.yaml:6:10: ppo.steps: expected an integer, found 'many'");
  EXPECT_EQ(ErrorOf(WithPpo("  steps: 1.5\n")),
            "/w/run.yaml:6:10: ppo.steps: expected an integer, found '1.5'");
  EXPECT_EQ(ErrorOf(WithPpo("  steps: \"7\"\n")),
            "/w/run.yaml:6:10: ppo.steps: expected an integer, found the text "
            "'7'");
  EXPECT_EQ(ErrorOf(WithPpo("  epochs: 3000000000\n")),
            "/w/run.yaml:6:11: ppo.epochs: expected an integer, found "
            "'3000000000', which does not fit");
  EXPECT_EQ(ErrorOf(WithPpo("  kl_coef: .inf\n")),
            "/w/run.yaml:6:12: ppo.kl_coef: expected a number, found '.inf'");
  EXPECT_EQ(ErrorOf(WithPpo("  kl_coef: nan\n")),
            "/w/run.yaml:6:12: ppo.kl_coef: expected a number, found 'nan', "
            "which is not finite");
  EXPECT_EQ(ErrorOf(WithPpo("  whiten_rewards: yes\n")),
            "/w/run.yaml:6:19: ppo.whiten_rewards: expected true or false, "
            "found 'yes'");
  EXPECT_EQ(ErrorOf(WithPpo("  estimator: [gae]\n")),
            "/w/run.yaml:6:14: ppo.estimator: expected a text, found a list");
  EXPECT_EQ(ErrorOf(std::string(kBase) + "seed: -1\n"),
            "/w/run.yaml:4:7: seed: expected an integer, found '-1', which is "
            "negative");
}

TEST(LoadConfigTest, ReportsWrongShapes) {
  EXPECT_EQ(ErrorOf(std::string(kBase) + "ppo: 3\n"),
            "/w/run.yaml:4:6: ppo: expected a section, found '3'");
  EXPECT_EQ(ErrorOf("stages: ppo\n"),
            "/w/run.yaml:1:9: stages: expected a list such as [a, b], found "
            "'ppo'");
  EXPECT_EQ(ErrorOf("stages: [ppo, {a: b}]\n"),
            "/w/run.yaml:1:15: stages[1]: expected a text, found a section");
  EXPECT_EQ(ErrorOf(WithPpo("  steps:\n")),
            "/w/run.yaml:6:3: ppo.steps: expected an integer, found nothing");
  EXPECT_EQ(ErrorOf("- a\n"),
            "/w/run.yaml:1:1: expected fields such as 'name: run'");
}

TEST(LoadConfigTest, RefusesDuplicateFields) {
  EXPECT_EQ(ErrorOf(WithPpo("  steps: 5\n  epochs: 1\n  steps: 6\n")),
            "/w/run.yaml:8:3: duplicate field 'ppo.steps' (first at line 6)");
}

TEST(LoadConfigTest, ReportsRangesAndChoicesAtTheValue) {
  EXPECT_EQ(ErrorOf(WithPpo("  gamma: 1.5\n")),
            "/w/run.yaml:6:10: ppo.gamma: must be at most 1, is 1.5");
  EXPECT_EQ(ErrorOf(WithPpo("  epochs: 0\n")),
            "/w/run.yaml:6:11: ppo.epochs: must be at least 1, is 0");
  EXPECT_EQ(ErrorOf(WithPpo("  loss: dpo\n")),
            "/w/run.yaml:6:9: ppo.loss: must be one of ppo, gspo, cispo, "
            "reinforce, prob_diff, is 'dpo'");
  EXPECT_EQ(ErrorOf("stages:\n  - pretrain\n  - dream\n"),
            "/w/run.yaml:3:5: stages[1]: must be one of pretrain, sft, "
            "collect, rm, rft, dpo, kto, ppo, eval, is 'dream'");
}

TEST(LoadConfigTest, ReportsSyntaxErrorsWithTheirPosition) {
  EXPECT_THAT(ErrorOf("name: [a\nseed: 1\n"), HasSubstr("/w/run.yaml:2:"));
  EXPECT_THAT(ErrorOf("name: \"abc\n"), HasSubstr("/w/run.yaml:"));
  EXPECT_THAT(ErrorOf("name: *nowhere\n"), HasSubstr("/w/run.yaml:1:"));
  EXPECT_EQ(ErrorOf("name: a\n---\nname: b\n"),
            "/w/run.yaml:2:1: a second document; one file holds one "
            "configuration");
  EXPECT_EQ(ErrorOf("? [a]\n: 1\n"), "/w/run.yaml:1:3: expected a field name");
}

TEST(LoadConfigTest, ReportsAllProblemsInTheOrderOfTheFile) {
  EXPECT_EQ(ErrorOf(WithPpo("  steps: x\n  kl: 1\n") + "nam: a\n", {"a"}),
            "/w/run.yaml:6:10: ppo.steps: expected an integer, found 'x'\n"
            "/w/run.yaml:7:3: unknown field 'ppo.kl'\n"
            "/w/run.yaml:8:1: unknown field 'nam' (did you mean 'name'?)\n"
            "override 'a': expected field=value");
}

TEST(LoadConfigTest, LimitsNesting) {
  std::string deep = "name: ";
  for (int i = 0; i < 40; ++i) deep += "[";
  for (int i = 0; i < 40; ++i) deep += "]";
  // Column 7 opens level 2 (the map is level 1), so level 33 is column 38.
  EXPECT_EQ(ErrorOf(deep + "\n"),
            "/w/run.yaml:1:38: nested deeper than 32 levels");
  std::string hostile(100000, '[');
  EXPECT_THAT(ErrorOf("name: " + hostile), HasSubstr("nested deeper"));
}

TEST(LoadConfigTest, RefusesAliasBombs) {
  // Level k holds 10 copies of level k-1: 10^6 leaves from 6 lines.
  std::string bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n";
  for (int k = 1; k < 6; ++k) {
    absl::StrAppend(&bomb, "a", k, ": &a", k, " [");
    for (int i = 0; i < 10; ++i) {
      absl::StrAppend(&bomb, i == 0 ? "" : ",", "*a", k - 1);
    }
    bomb += "]\n";
  }
  EXPECT_THAT(ErrorOf(bomb), HasSubstr("more than 100000 nodes"));
}

TEST(LoadConfigTest, LimitsNestingBehindAliases) {
  // Each anchor wraps the one before: depth without deep text.
  std::string chain = "a0: &a0 [x]\n";
  for (int k = 1; k < 40; ++k) {
    absl::StrAppend(&chain, "a", k, ": &a", k, " [*a", k - 1, "]\n");
  }
  EXPECT_THAT(ErrorOf(chain), HasSubstr("nested deeper than 32 levels"));
}

TEST(LoadConfigTest, ExpandsAliases) {
  const auto c =
      Load(WithPpo("  optimizer: &o {lr: 0.5}\n"
                   "  value_optimizer: *o\n"));
  EXPECT_DOUBLE_EQ(c.ppo().value_optimizer().lr(), 0.5);
}

TEST(LoadConfigTest, RefusesTextThatNoProtoOrPathCanHold) {
  EXPECT_EQ(ErrorOf(std::string(kBase) + "name: \"a\\0b\"\n"),
            "/w/run.yaml:4:7: name: expected a text, found bytes that are not "
            "UTF-8 or a NUL");
}

TEST(LoadConfigTest, AppliesOverridesInOrder) {
  const auto c = Load(WithPpo("  steps: 3\n"),
                      {"ppo.steps=4", "ppo.steps=5", "ppo.optimizer.lr=1e-4",
                       "stages=[ppo,eval]", "eval.prompts=[a, 'b c']",
                       "ppo.value_optimizer={lr: 2, beta1: 0.5}", "name=x"});
  EXPECT_EQ(c.ppo().steps(), 5);
  EXPECT_DOUBLE_EQ(c.ppo().optimizer().lr(), 1e-4);
  EXPECT_EQ(c.stages_size(), 2);
  EXPECT_EQ(c.eval().prompts(1), "/w/b c");
  EXPECT_DOUBLE_EQ(c.ppo().value_optimizer().beta1(), 0.5);
  EXPECT_EQ(c.name(), "x");
}

TEST(LoadConfigTest, ReportsProblemsOfOverrides) {
  const std::string base = WithPpo("");
  EXPECT_EQ(ErrorOf(base, {"ppo.kl_coeff=1"}),
            "override 'ppo.kl_coeff=1': unknown field 'ppo.kl_coeff' (did you "
            "mean 'kl_coef'?)");
  EXPECT_EQ(ErrorOf(base, {"ppo.steps=abc"}),
            "override 'ppo.steps=abc': ppo.steps: expected an integer, found "
            "'abc'");
  EXPECT_EQ(ErrorOf(base, {"ppo.steps.x=1"}),
            "override 'ppo.steps.x=1': 'ppo.steps' has no fields");
  EXPECT_EQ(ErrorOf(base, {"=1"}), "override '=1': expected field=value");
  EXPECT_EQ(ErrorOf(base, {"ppo.steps=0"}),
            "override 'ppo.steps=0': ppo.steps: must be at least 1, is 0");
  EXPECT_EQ(ErrorOf(base, {"ppo.steps="}),
            "override 'ppo.steps=': ppo.steps: expected an integer, found "
            "nothing");
  EXPECT_THAT(ErrorOf(base, {"stages=[ppo"}),
              HasSubstr("override 'stages=[ppo': "));
}

TEST(LoadConfigTest, PlacesCrossFieldProblemsAtTheField) {
  EXPECT_EQ(ErrorOf(WithPpo("  unit_prompts: 48\n")),
            "/w/run.yaml:6:17: ppo.unit_prompts: 48 does not divide "
            "ppo.prompts_per_step 128");
  // The field in question is not in the file: only the file can be named.
  EXPECT_EQ(ErrorOf(kBase),
            "/w/run.yaml: ppo.prompts: stage ppo needs prompt files");
}

TEST(LoadConfigTest, ResolvesPathsAgainstTheFolderOfTheFile) {
  const auto c = Load(WithPpo("") + "model: {init: ../m, reference: /abs/r}\n");
  EXPECT_EQ(c.reward().path(), "/w/t.json");
  EXPECT_EQ(c.ppo().prompts(0), "/w/p.jsonl");
  EXPECT_EQ(c.model().init(), "/m");
  EXPECT_EQ(c.model().reference(), "/abs/r");
  EXPECT_EQ(c.reward().lexicon(), "");
}

class LoadConfigFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = JoinPath(
        ::testing::TempDir(),
        absl::StrCat(
            "cox_config_",
            ::testing::UnitTest::GetInstance()->current_test_info()->name()));
    ASSERT_TRUE(Fs::Real().RemoveAll(dir_).ok());
    ASSERT_TRUE(Fs::Real().MakeDirs(dir_).ok());
  }
  void TearDown() override { (void)Fs::Real().RemoveAll(dir_); }
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = JoinPath(dir_, name);
    EXPECT_TRUE(WriteFileDurably(Fs::Real(), path, text).ok());
    return path;
  }
  std::string dir_;
};

TEST_F(LoadConfigFilesTest, ReportsMissingFilesOfStagesThatRun) {
  const std::string path =
      Write("run.yaml", WithPpo("") + "sft: {train: [gone.jsonl]}\n");
  EXPECT_EQ(LoadConfig({path, {}, "", true}).status().message(),
            absl::StrCat(path, ":3:29: reward.path: '", dir_,
                         "/t.json' does not exist\n", path,
                         ":5:13: ppo.prompts[0]: '", dir_,
                         "/p.jsonl' does not exist"));
  Write("t.json", "{}");
  Write("p.jsonl", "{}");
  const auto config = LoadConfig({path, {}, "", true});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->ppo().prompts(0), JoinPath(dir_, "p.jsonl"));
}

TEST_F(LoadConfigFilesTest, ReportsAMissingConfiguration) {
  const auto config = LoadConfig({JoinPath(dir_, "no.yaml"), {}, "", true});
  EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("no.yaml"));
  EXPECT_EQ(LoadConfig({}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(LoadConfigFilesTest, RefusesHugeFiles) {
  const std::string path = Write("run.yaml", std::string(2 << 20, '#'));
  EXPECT_THAT(std::string(LoadConfig({path, {}, "", true}).status().message()),
              HasSubstr("2097152 bytes"));
}

}  // namespace
}  // namespace cox
