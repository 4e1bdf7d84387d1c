#include "coordinator/chat_setup.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

class ChatSetupTest : public ::testing::Test {
 protected:
  ChatSetupTest() {
    COX_CHECK(fs_.MakeDirs("model").ok() && fs_.MakeDirs("run").ok());
    Write("model/config.json", "{}");
    config_.mutable_tokenizer()->set_kind("file");
    config_.mutable_tokenizer()->set_eos_token("<e>");
  }
  void Write(const std::string& path, const std::string& text) {
    COX_CHECK(WriteFileDurably(fs_, path, text).ok());
  }
  absl::StatusOr<std::optional<ChatTemplateOptions>> Prepare(bool resumed) {
    return PrepareChatTemplate(fs_, config_, "run", resumed);
  }

  FaultFs fs_;
  cox::v1::RunConfig config_;
};

TEST_F(ChatSetupTest, WithoutATemplateThereIsNone) {
  ASSERT_OK_AND_ASSIGN(auto chat, Prepare(false));
  EXPECT_FALSE(chat.has_value());
  config_.mutable_model()->set_init("model");
  ASSERT_OK_AND_ASSIGN(chat, Prepare(false));
  EXPECT_FALSE(chat.has_value());
  EXPECT_FALSE(fs_.Exists("run/tokenizer_config.json"));
}

TEST_F(ChatSetupTest, AResumedRunKeepsTheTemplateOfItsModel) {
  config_.mutable_model()->set_init("model");
  Write("model/tokenizer_config.json",
        R"({"chat_template": "t", "eos_token": "<m>", "more": 1})");
  ASSERT_OK_AND_ASSIGN(auto chat, Prepare(false));
  ASSERT_TRUE(chat.has_value());
  EXPECT_EQ(chat->template_text, "t");
  EXPECT_EQ(chat->eos_token, "<m>");
  Write("model/tokenizer_config.json", R"({"chat_template": "other"})");
  ASSERT_OK_AND_ASSIGN(chat, Prepare(true));
  EXPECT_EQ(chat->template_text, "t");
}

TEST_F(ChatSetupTest, AFileOfItsOwnCounts) {
  config_.mutable_tokenizer()->set_chat_template("chat.jinja");
  EXPECT_THAT(Prepare(false),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("chat.jinja")));
  Write("chat.jinja", "mine");
  ASSERT_OK_AND_ASSIGN(auto chat, Prepare(false));
  EXPECT_EQ(chat->template_text, "mine");
  EXPECT_EQ(chat->eos_token, "<e>");
  config_.mutable_model()->set_init("model");
  Write("model/tokenizer_config.json",
        R"({"chat_template": "t", "eos_token": "<m>"})");
  ASSERT_OK_AND_ASSIGN(chat, Prepare(false));
  EXPECT_EQ(chat->template_text, "mine");
  EXPECT_EQ(chat->eos_token, "<m>");
}

TEST_F(ChatSetupTest, TheTokenizerIsThatOfItsPathElseOfTheModel) {
  config_.mutable_model()->set_init("model");
  EXPECT_EQ(TokenizerSource(config_), "model");
  config_.mutable_tokenizer()->set_path("t.json");
  EXPECT_EQ(TokenizerSource(config_), "t.json");
}

}  // namespace
}  // namespace cox
