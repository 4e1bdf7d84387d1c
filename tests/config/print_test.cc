#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "lib/config/config.h"
#include "lib/config/schema.h"

namespace cox {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

cox::v1::RunConfig ValidConfig() {
  LoadOptions options;
  options.yaml_text =
      "stages: [ppo]\n"
      "tokenizer: {kind: none, eos_ids: [1]}\n"
      "reward: {kind: table, path: /t.json}\n"
      "ppo: {prompts: [/p.jsonl]}\n";
  options.check_files = false;
  auto config = LoadConfig(options);
  EXPECT_TRUE(config.ok()) << config.status();
  return *std::move(config);
}

// Any text that proto3 accepts: ASCII with controls, quotes, wide characters.
std::string RandomText(std::mt19937_64& rng) {
  static const char* const kPieces[] = {"a",    "B",
                                        "0",    " ",
                                        ":",    "#",
                                        "'",    "\"",
                                        "\\",   "\n",
                                        "\t",   "\x01",
                                        "\x7f", "é",
                                        "語",   "😀",
                                        "- ",   "{",
                                        "}",    "[",
                                        "]",    ",",
                                        "&x",   "*y",
                                        "!",    "|",
                                        ">",    "%",
                                        "@",    "~",
                                        "/",    ".",
                                        "\r",   "null",
                                        "true", "1e3",
                                        "---",  "<|endoftext|>"};
  std::string text;
  const size_t length = rng() % 8;
  for (size_t i = 0; i < length; ++i) {
    text += kPieces[rng() % std::size(kPieces)];
  }
  return text;
}

double RandomNumber(std::mt19937_64& rng, const cox::v1::Setting& setting) {
  const double lo = setting.has_min() ? setting.min() : -1e6;
  const double hi = setting.has_max() ? setting.max() : lo + 1e6;
  const double u =
      static_cast<double>(rng() >> 11) * 0x1.0p-53;  // all 53 bits are used
  return lo + u * (hi - lo);
}

// One random value within range and choices for one field.
void Mutate(const config::FieldDescriptor& field, config::Message* message,
            std::mt19937_64& rng) {
  const cox::v1::Setting& setting = config::SettingOf(field);
  const auto* reflection = message->GetReflection();
  if (field.is_repeated()) reflection->ClearField(message, &field);
  const uint64_t count = field.is_repeated() ? rng() % 4 : 1;
  for (uint64_t i = 0; i < count; ++i) {
    std::string text;
    bool quoted = false;
    if (config::IsNumber(field)) {
      const double number = RandomNumber(rng, setting);
      const bool real =
          field.cpp_type() == config::FieldDescriptor::CPPTYPE_DOUBLE;
      char buffer[64];
      std::snprintf(buffer, sizeof(buffer), real ? "%.17g" : "%.0f",
                    real ? number : std::abs(number));
      text = buffer;
    } else if (field.cpp_type() == config::FieldDescriptor::CPPTYPE_BOOL) {
      text = rng() % 2 == 0 ? "true" : "false";
    } else if (!setting.choices().empty()) {
      const std::vector<std::string> choices =
          absl::StrSplit(setting.choices(), '|');
      text = choices[rng() % choices.size()];
    } else {
      text = RandomText(rng);
      quoted = true;
      // Paths come back resolved.
      if (setting.path() && !text.empty()) text = "/x" + text;
      if (setting.path() && text.find('/', 1) != text.npos) text = "/x";
    }
    ASSERT_TRUE(config::StoreScalar({text, quoted}, field, message).ok())
        << field.full_name() << " " << text;
  }
}

void MutateSome(config::Message* message, std::mt19937_64& rng) {
  const auto* descriptor = message->GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto& field = *descriptor->field(i);
    if (config::IsSection(field)) {
      MutateSome(message->GetReflection()->MutableMessage(message, &field),
                 rng);
    } else if (rng() % 3 == 0) {
      Mutate(field, message, rng);
    }
  }
}

TEST(PrintConfigTest, LoadsBackToTheSameConfiguration) {
  std::mt19937_64 rng(7);
  for (int round = 0; round < 300; ++round) {
    cox::v1::RunConfig config = ValidConfig();
    MutateSome(&config, rng);
    LoadOptions options;
    options.yaml_text = PrintConfig(config);
    options.check_files = false;
    // Random values break rules between fields; the syntax must never break.
    // So the first load shows which values the rules refuse, and the message
    // is compared whenever there is one.
    const auto loaded = LoadConfig(options);
    if (!loaded.ok()) {
      const std::vector<ConfigIssue> issues = CheckConfig(config);
      ASSERT_FALSE(issues.empty()) << loaded.status() << "\n"
                                   << options.yaml_text;
      EXPECT_THAT(std::string(loaded.status().message()),
                  HasSubstr(issues[0].message));
      continue;
    }
    EXPECT_TRUE(MessageDifferencer::Equals(config, *loaded));
  }
}

// One field at a time, so that most results are valid.
TEST(PrintConfigTest, LoadsBackEverySingleField) {
  std::mt19937_64 rng(11);
  const cox::v1::RunConfig base = ValidConfig();
  std::vector<std::string> paths;
  config::ForEachLeaf(
      base, [&](const config::Leaf& leaf) { paths.push_back(leaf.path); });
  int valid = 0;
  int rounds = 0;
  for (const std::string& path : paths) {
    for (int k = 0; k < 8; ++k, ++rounds) {
      cox::v1::RunConfig config = base;
      config::Message* message = &config;
      const std::vector<std::string> names = absl::StrSplit(path, '.');
      for (size_t i = 0; i + 1 < names.size(); ++i) {
        message = message->GetReflection()->MutableMessage(
            message, message->GetDescriptor()->FindFieldByName(names[i]));
      }
      Mutate(*message->GetDescriptor()->FindFieldByName(names.back()), message,
             rng);
      LoadOptions options;
      options.yaml_text = PrintConfig(config);
      options.check_files = false;
      const auto loaded = LoadConfig(options);
      if (!CheckConfig(config).empty()) continue;
      ASSERT_TRUE(loaded.ok()) << loaded.status() << "\n" << path;
      ASSERT_TRUE(MessageDifferencer::Equals(config, *loaded))
          << path << "\n"
          << options.yaml_text;
      EXPECT_EQ(PrintConfig(*loaded), options.yaml_text);
      ++valid;
    }
  }
  EXPECT_GT(valid, rounds / 2);
}

TEST(PrintConfigTest, IsReadable) {
  const std::string text = PrintConfig(ValidConfig());
  EXPECT_THAT(text, ::testing::StartsWith("name: run\nrun_dir: \"\"\nseed: 1\n"
                                          "stages: [ppo]\nmodel:\n"
                                          "  type: gpt2\n"));
  EXPECT_THAT(text, HasSubstr("  eos_token: \"<|endoftext|>\"\n"));
  EXPECT_THAT(text, HasSubstr("\n  kl_coef: 0.05\n"));
  EXPECT_THAT(text, HasSubstr("\n    eps: 1e-08\n"));
}

TEST(ConfigHashTest, IgnoresWhatAResumedRunMayChange) {
  const cox::v1::RunConfig a = ValidConfig();
  cox::v1::RunConfig b = a;
  b.set_run_dir("/elsewhere");
  b.mutable_roles()->set_actors(9);
  b.mutable_checkpoint()->set_every(3);
  b.mutable_log()->set_tensorboard(false);
  b.mutable_limits()->set_lease_s(99);
  EXPECT_EQ(ConfigHash(a), ConfigHash(b));
  EXPECT_EQ(ConfigHash(a).size(), 64u);
  EXPECT_THAT(ResumableDiff(a, b), IsEmpty());
  EXPECT_EQ(DiffConfigs(a, b).size(), 5u);
}

TEST(ConfigHashTest, ChangesWithEveryOtherField) {
  const cox::v1::RunConfig a = ValidConfig();
  std::set<std::string> hashes = {ConfigHash(a)};
  cox::v1::RunConfig b = a;
  b.set_seed(2);
  EXPECT_TRUE(hashes.insert(ConfigHash(b)).second);
  b.mutable_ppo()->set_kl_coef(0.1);
  EXPECT_TRUE(hashes.insert(ConfigHash(b)).second);
  b.add_stages("eval");
  EXPECT_TRUE(hashes.insert(ConfigHash(b)).second);
  EXPECT_THAT(ResumableDiff(a, b),
              ElementsAre("seed: 1 -> 2", "stages: [ppo] -> [ppo, eval]",
                          "ppo.kl_coef: 0.05 -> 0.1"));
}

TEST(ConfigHashTest, SurvivesALoad) {
  const cox::v1::RunConfig a = ValidConfig();
  LoadOptions options;
  options.yaml_text = PrintConfig(a);
  options.check_files = false;
  const auto b = LoadConfig(options);
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(ConfigHash(a), ConfigHash(*b));
}

TEST(ExplainTest, ShowsTypeDefaultRangeAndDoc) {
  EXPECT_EQ(*Explain("ppo.kl_coef"),
            "ppo.kl_coef  (number, default 0.05, at least 0)\n"
            "    Beta of the KL penalty in the reward.\n");
  EXPECT_THAT(*Explain("ppo.estimator"),
              HasSubstr("(text, default gae, one of gae | rloo | grpo"));
  EXPECT_THAT(*Explain("roles.actors"), HasSubstr("from 1 to 4096"));
  EXPECT_THAT(*Explain("ppo.prompts"), HasSubstr("list of texts, default []"));
}

TEST(ExplainTest, ShowsWholeSections) {
  const std::string text = *Explain("ppo");
  EXPECT_THAT(text, HasSubstr("ppo.kl_coef  ("));
  EXPECT_THAT(text, HasSubstr("ppo.optimizer.lr  ("));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("\nrm.")));
  EXPECT_THAT(ExplainAll(), HasSubstr("checkpoint.keep_last  ("));
}

TEST(ExplainTest, NamesTheNearestField) {
  EXPECT_EQ(Explain("ppo.kl_coeff").status().message(),
            "unknown field 'ppo.kl_coeff' (did you mean 'kl_coef'?)");
  EXPECT_EQ(Explain("kl_coef").status().message(),
            "unknown field 'kl_coef' (did you mean 'ppo.kl_coef'?)");
  EXPECT_EQ(Explain("seed.x").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Explain("").status().code(), absl::StatusCode::kNotFound);
}

TEST(SchemaTest, EveryFieldIsDocumentedAndItsDefaultIsInRange) {
  // Only what a default cannot know may be wrong: the stages to run.
  for (const ConfigIssue& issue : CheckConfig(DefaultConfig())) {
    EXPECT_TRUE(issue.field == "stages" || issue.field == "tokenizer.files")
        << issue.field << ": " << issue.message;
  }
  config::ForEachLeaf(DefaultConfig(), [](const config::Leaf& leaf) {
    EXPECT_FALSE(config::SettingOf(*leaf.field).doc().empty()) << leaf.path;
  });
}

TEST(HasStageTest, LooksUpStages) {
  EXPECT_TRUE(HasStage(ValidConfig(), "ppo"));
  EXPECT_FALSE(HasStage(ValidConfig(), "rm"));
}

}  // namespace
}  // namespace cox
