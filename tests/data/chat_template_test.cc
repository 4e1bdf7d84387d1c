// Templates of three families against the text that Hugging Face transformers'
// apply_chat_template writes for the same conversations
// (tests/data/chat_templates/golden.json).

#include "lib/data/chat_template.h"

#include <cstdlib>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string ReadFile(const std::string& name) {
  const char* const root = std::getenv("COX_SOURCE_DIR");
  const std::string path = JoinPath(
      JoinPath(root != nullptr ? root : ".", "tests/data/chat_templates"),
      name);
  absl::StatusOr<std::string> text = Fs::Real().ReadAll(path);
  EXPECT_OK(text);
  return text.value_or("");
}

TEST(ChatTemplateTest, ThreeFamiliesWriteTheGoldenText) {
  std::map<std::string, int> seen;
  for (const Json& one : Json::parse(ReadFile("golden.json"))) {
    const std::string family = one["family"];
    ASSERT_OK_AND_ASSIGN(std::optional<ChatTemplateOptions> options,
                         ReadChatTemplate(ReadFile(family + ".json")));
    ASSERT_TRUE(options.has_value());
    options->add_generation_prompt = one["add_generation_prompt"];
    std::vector<ChatMessage> messages;
    for (const Json& message : one["messages"]) {
      messages.push_back({message["role"], message["content"]});
    }
    absl::StatusOr<std::string> text = RenderChat(*options, messages);
    ASSERT_OK(text);
    EXPECT_EQ(*text, one["text"].get<std::string>())
        << family << ": " << one["messages"];
    ++seen[family];
  }
  EXPECT_EQ(seen.size(), 3u);
  for (const auto& [family, count] : seen) EXPECT_EQ(count, 12) << family;
}

TEST(ReadChatTemplateTest, TakesTheFormsThatFoldersUse) {
  ASSERT_OK_AND_ASSIGN(
      const auto plain,
      ReadChatTemplate(R"({"chat_template": "t", "bos_token": null,
          "eos_token": {"content": "</s>", "lstrip": false}})"));
  ASSERT_TRUE(plain.has_value());
  EXPECT_EQ(plain->template_text, "t");
  EXPECT_EQ(plain->bos_token, "");
  EXPECT_EQ(plain->eos_token, "</s>");
  ASSERT_OK_AND_ASSIGN(const auto named, ReadChatTemplate(R"({"chat_template": [
          {"name": "tool_use", "template": "a"},
          {"name": "default", "template": "b"}]})"));
  EXPECT_EQ(named->template_text, "b");
  ASSERT_OK_AND_ASSIGN(const auto none, ReadChatTemplate("{}"));
  EXPECT_FALSE(none.has_value());
}

TEST(ReadChatTemplateTest, ErrorsSayWhatIsExpected) {
  for (const auto& [text, message] : std::map<std::string, std::string>{
           {"[]", "not a JSON object"},
           {R"({"chat_template": 3})", "expected a text"},
           {R"({"chat_template": []})", "expected a text"},
           {R"({"chat_template": "t", "eos_token": 2})", "eos_token"}}) {
    EXPECT_THAT(
        ReadChatTemplate(text),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }
}

}  // namespace
}  // namespace cox
