#include "cli/chat_session.h"

#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/engine/fake.h"
#include "lib/engine/generate_rows.h"
#include "lib/engine/generation_config.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

std::shared_ptr<const Tokenizer> Bytes() {
  BpeOptions options;
  options.vocab_size = 258;
  options.special_tokens = {"<end>", "<turn>"};
  options.texts = {"abc"};
  auto trained = Tokenizer::TrainByteLevelBpe(options);
  COX_CHECK(trained.ok());
  return *std::move(trained);
}

// Writes a fixed text, then <end>, whatever it is asked; keeps the prompts.
class ScriptedPolicy : public PolicyEngine {
 public:
  ScriptedPolicy(ModelConfig config, std::vector<int32_t> script,
                 std::vector<GenerateRequest>* seen)
      : config_(std::move(config)), script_(std::move(script)), seen_(seen) {}
  absl::Status Load(std::shared_ptr<const Snapshot>) override {
    return absl::OkStatus();
  }
  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch&, double,
                                         bool) override {
    return absl::InternalError("not asked");
  }
  absl::StatusOr<std::vector<float>> Values(const TokenBatch&) override {
    return absl::InternalError("not asked");
  }
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch&) override {
    return absl::InternalError("not asked");
  }
  absl::StatusOr<GenerateResult> Generate(
      const GenerateRequest& request) override {
    COX_RETURN_IF_ERROR(ValidateGenerateRequest(request, config_));
    seen_->push_back(request);
    GenerateRows rows(request);
    std::vector<float> logits(static_cast<size_t>(config_.vocab_size));
    for (size_t t = 0; !rows.Active().empty(); ++t) {
      std::fill(logits.begin(), logits.end(), -1e9f);
      logits[static_cast<size_t>(t < script_.size() ? script_[t] : 0)] = 0;
      for (const int64_t row : rows.Active()) {
        COX_RETURN_IF_ERROR(rows.Sample(row, logits));
      }
    }
    return rows.Take();
  }

 private:
  ModelConfig config_;
  std::vector<int32_t> script_;
  std::vector<GenerateRequest>* seen_;
};

class ChatSessionTest : public ::testing::Test {
 protected:
  ChatSession Open(const std::string& script, bool with_template,
                   ChatSettings settings = ChatSettings(),
                   int64_t max_positions = 64) {
    ChatModel model;
    model.tokenizer = tokenizer_;
    model.config =
        FakeModelConfig(258, 4, HeadKind::kLanguageModel, max_positions);
    model.config.eos_ids = {0};
    if (encdec_) model.config.family = ModelFamily::kInstructEncdec;
    if (with_template) {
      model.chat.emplace();
      model.chat->template_text =
          "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n"
          "{% endfor %}{% if add_generation_prompt %}a:{% endif %}";
      model.chat->eos_token = "<turn>";
    }
    model.engine = std::make_unique<ScriptedPolicy>(
        model.config, tokenizer_->Encode(script).value(), &seen_);
    return ChatSession(std::move(model), std::move(settings));
  }
  std::string Say(ChatSession& chat, std::string_view text) {
    std::string answer;
    pieces_ = 0;
    EXPECT_OK(chat.Say(text, [&](std::string_view piece) {
      answer += piece;
      ++pieces_;
    }));
    return answer;
  }
  std::string PromptOf(const GenerateRequest& request) {
    return tokenizer_->Decode(request.prompts[0]).value();
  }

  std::shared_ptr<const Tokenizer> tokenizer_ = Bytes();
  std::vector<GenerateRequest> seen_;
  int pieces_ = 0;
  bool encdec_ = false;  // of the next Open()
};

TEST_F(ChatSessionTest, KeepsTheConversationAndStreams) {
  ChatSettings settings;
  settings.system = "s";
  ChatSession chat = Open("yes", /*with_template=*/true, settings);
  EXPECT_EQ(Say(chat, "one"), "yes");
  EXPECT_EQ(pieces_, 3);
  EXPECT_EQ(PromptOf(seen_[0]), "s:s\nu:one\na:");
  EXPECT_EQ(Say(chat, "two"), "yes");
  EXPECT_EQ(PromptOf(seen_[1]), "s:s\nu:one\na:yes\nu:two\na:");
  EXPECT_NE(seen_[0].prompt_ids, seen_[1].prompt_ids);
  chat.Reset();
  EXPECT_THAT(chat.history(), SizeIs(1));
  Say(chat, "three");
  EXPECT_EQ(PromptOf(seen_[2]), "s:s\nu:three\na:");
  // The model's end, and that of a turn.
  EXPECT_THAT(seen_[2].sampling.eos_ids, ElementsAre(0, 1));
}

TEST_F(ChatSessionTest, WithoutATemplateItContinuesTheText) {
  ChatSession chat = Open(" ok", /*with_template=*/false);
  EXPECT_EQ(Say(chat, "one"), " ok");
  EXPECT_EQ(Say(chat, "two"), " ok");
  EXPECT_EQ(PromptOf(seen_[1]), "two");
  EXPECT_TRUE(chat.history().empty());
}

TEST_F(ChatSessionTest, StopStringsEndAnAnswerAndAreNotShown) {
  ChatSettings settings;
  settings.stop = {"\nu:"};
  ChatSession chat = Open("hi\nu:more", /*with_template=*/true, settings);
  EXPECT_EQ(Say(chat, "x"), "hi");
  EXPECT_EQ(chat.history().back().content, "hi");
  settings.stop = {"zz"};
  ChatSession other = Open("hiz", /*with_template=*/true, settings);
  EXPECT_EQ(Say(other, "x"), "hiz");  // what could have become one
}

TEST_F(ChatSessionTest, OldTurnsGoWhenTheModelTakesNoMore) {
  ChatSession chat = Open("yes", /*with_template=*/true, ChatSettings(),
                          /*max_positions=*/24);
  Say(chat, "one");
  Say(chat, "two");  // u:one\na:yes\nu:two\na: has 20 tokens
  EXPECT_EQ(chat.dropped_turns(), 0);
  EXPECT_EQ(Say(chat, "tri"), "yes");
  EXPECT_EQ(chat.dropped_turns(), 1);
  EXPECT_EQ(PromptOf(seen_[2]), "u:two\na:yes\nu:tri\na:");
  const auto before = chat.history();
  EXPECT_THAT(chat.Say(std::string(30, 'x'), [](std::string_view) {}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("expected a prompt of 1 to 23 tokens")));
  EXPECT_EQ(chat.history().size(), before.size());
}

// The start token of a model without BOS is its end token.
TEST_F(ChatSessionTest, AnEncoderDecoderReadsInstructionAndContext) {
  encdec_ = true;
  ChatSession plain = Open("ok", /*with_template=*/false);
  EXPECT_FALSE(plain.continues());
  EXPECT_EQ(Say(plain, "do it"), "ok");
  EXPECT_THAT(seen_[0].instructions,
              ElementsAre(tokenizer_->Encode("do it").value()));
  EXPECT_THAT(seen_[0].prompts, ElementsAre(ElementsAre(0)));
  ChatSettings settings;
  settings.instruction = "go on";
  ChatSession with_task = Open("ok", /*with_template=*/false, settings);
  EXPECT_TRUE(with_task.continues());
  EXPECT_EQ(Say(with_task, "ab"), "ok");
  EXPECT_THAT(seen_[1].instructions,
              ElementsAre(tokenizer_->Encode("go on").value()));
  std::vector<int32_t> decoder = tokenizer_->Encode("ab").value();
  decoder.insert(decoder.begin(), 0);
  EXPECT_THAT(seen_[1].prompts, ElementsAre(decoder));
}

TEST_F(ChatSessionTest, ATaskStandsBeforeTheTextOfOtherModels) {
  ChatSettings settings;
  settings.instruction = "go on";
  ChatSession chat = Open("ok", /*with_template=*/false, settings);
  Say(chat, "ab");
  EXPECT_EQ(PromptOf(seen_[0]), "go on\nab");
}

TEST_F(ChatSessionTest, SamplesAreNotKept) {
  ChatSession chat = Open("yes", /*with_template=*/true);
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> answers,
                       chat.Sample("one", 3));
  EXPECT_THAT(answers, ElementsAre("yes", "yes", "yes"));
  EXPECT_THAT(seen_[0].sample_indices, ElementsAre(0, 1, 2));
  EXPECT_TRUE(chat.history().empty());
}

TEST(ApplyGenerationConfigTest, ItsIdsTakeThePlaceOfTheModels) {
  ModelConfig config = FakeModelConfig(10, 4);
  config.eos_ids = {1};
  config.pad_id = 3;
  ASSERT_OK(ApplyGenerationConfig(std::nullopt, &config));
  ASSERT_OK(ApplyGenerationConfig(
      R"({"eos_token_id": [2, 5], "bos_token_id": 4, "temperature": 2})",
      &config));
  EXPECT_THAT(config.eos_ids, ElementsAre(2, 5));
  EXPECT_EQ(config.bos_id, 4);
  EXPECT_EQ(config.pad_id, 3);
  for (const char* bad :
       {"[]", R"({"eos_token_id": "x"})", R"({"eos_token_id": 10})"}) {
    EXPECT_THAT(ApplyGenerationConfig(bad, &config),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace cox
