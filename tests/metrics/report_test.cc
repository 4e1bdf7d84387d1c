#include "lib/metrics/report.h"

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kAttack[] = "<script>alert(1)</script>\"'&<img src=x>";

ReportInput FullInput() {
  ReportInput input;
  input.title = "demo";
  input.summary = "A run.";
  input.facts = {{"Seed", "1"}, {"Device", "cpu"}};
  for (int64_t step = 1; step <= 60; ++step) {
    const double x = static_cast<double>(step);
    input.rows.push_back(
        {"ppo", step, {{"objective/scores", x}, {"custom/thing", -x}}});
    input.rows.push_back({"sft", step, {{"loss/lm", 1 / x}}});
  }
  input.eval = {{"sft", "gold score", 0.1, 0, 0.2, "", 100, Better::kHigher},
                {"ppo", "gold score", 0.6, 0.5, 0.7, "", 100, Better::kHigher},
                {"sft", "perplexity", 12, 11, 13, "", 0, Better::kLower},
                {"sft", "length", 20, 19, 21, "tokens", 0, Better::kNeither},
                {"ppo", "length", 22, 21, 23, "tokens", 0, Better::kNeither},
                {"ppo", "perplexity", 14, 13, 15, "", 0, Better::kLower}};
  input.samples = {{"prompt", "before", "after", 0.25,
                    std::numeric_limits<double>::quiet_NaN()}};
  input.config_yaml = "name: demo\n";
  return input;
}

// Elements open and close in order; attributes are quoted. Enough of HTML for
// a page that we generate ourselves.
void ExpectBalanced(const std::string& html) {
  static const std::set<std::string> kVoid = {"meta", "!doctype"};
  std::vector<std::string> open;
  size_t at = 0;
  while ((at = html.find('<', at)) != html.npos) {
    const size_t end = html.find('>', at);
    ASSERT_NE(end, html.npos);
    const std::string tag = html.substr(at + 1, end - at - 1);
    const std::string name =
        tag.substr(0, tag.find_first_of(" />", tag[0] == '/' ? 1 : 0));
    at = end;
    if (tag[0] == '/') {
      ASSERT_FALSE(open.empty()) << tag;
      ASSERT_EQ("/" + open.back(), name);
      open.pop_back();
    } else if (tag.back() != '/' && !kVoid.contains(name)) {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty()) << open.back();
}

TEST(RenderReportTest, IsBalancedAndSelfContained) {
  const std::string html = RenderReport(FullInput());
  ExpectBalanced(html);
  for (const char* forbidden :
       {"http:", "https:", "<script", "<link", "<img",
        "src=", "href=", " style=", " onload", "url(", "@import"}) {
    EXPECT_THAT(html, Not(HasSubstr(forbidden)));
  }
  EXPECT_THAT(html, HasSubstr("default-src 'none'"));
  EXPECT_THAT(html, HasSubstr("prefers-color-scheme:dark"));
}

TEST(RenderReportTest, EscapesEveryText) {
  ReportInput input = FullInput();
  input.title = input.summary = input.eval_note = kAttack;
  input.before_label = input.after_label = input.config_yaml = kAttack;
  input.facts = {{kAttack, kAttack}};
  input.rows.push_back({kAttack, 1, {{kAttack, 1}}});
  input.eval.push_back(
      {kAttack, kAttack, 1, 0, 2, kAttack, 1, Better::kHigher});
  input.samples = {{kAttack, kAttack, kAttack, 1, 2}};
  const std::string html = RenderReport(input);
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("<img")));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
  ExpectBalanced(html);
}

TEST(RenderReportTest, ShowsStagesInOrderOfAppearance) {
  const std::string html = RenderReport(FullInput());
  const size_t ppo = html.find("<h3>Reinforcement learning</h3>");
  const size_t sft = html.find("<h3>Supervised fine-tuning</h3>");
  ASSERT_NE(ppo, html.npos);
  ASSERT_NE(sft, html.npos);
  EXPECT_LT(ppo, sft);
  // A metric without a panel of its own is still there.
  EXPECT_THAT(html, HasSubstr("custom/thing"));
}

TEST(RenderReportTest, MarksTheBestValueInItsDirection) {
  const std::string html = RenderReport(FullInput());
  EXPECT_THAT(html, HasSubstr("<td class=\"best\" title=\"n = 100\"><span "
                              "class=\"value\">0.600</span>"));
  EXPECT_THAT(html, HasSubstr("<td class=\"best\"><span class=\"value\">"
                              "12.00</span><span class=\"ci\">[11.00, "
                              "13.00]</span>"));
  EXPECT_THAT(html, HasSubstr("perplexity <span class=\"unit\"> ↓</span>"));
  EXPECT_THAT(html, HasSubstr("length <span class=\"unit\">tokens</span>"));
  EXPECT_THAT(html, HasSubstr("<td><span class=\"value\">22.00</span>"));
}

TEST(RenderReportTest, LeavesOutWhatHasNoData) {
  ReportInput input;
  input.title = "empty";
  const std::string html = RenderReport(input);
  ExpectBalanced(html);
  EXPECT_THAT(html, Not(HasSubstr("<h2>")));
}

TEST(RenderReportTest, SurvivesNonFiniteNumbers) {
  ReportInput input = FullInput();
  const double nan = std::nan("");
  input.rows = {{"ppo", 1, {{"objective/scores", nan}}}};
  input.eval = {{"a", "m", nan, nan, nan, "", 0, Better::kHigher},
                {"b", "m", 1, nan, nan, "", 0, Better::kHigher}};
  const std::string html = RenderReport(input);
  ExpectBalanced(html);
  EXPECT_THAT(html, HasSubstr("<span class=\"value\">NaN</span>"));
}

TEST(WriteReportTest, WritesTheFile) {
  const std::string path = JoinPath(::testing::TempDir(), "cox_report.html");
  ASSERT_TRUE(WriteReport(FullInput(), path).ok());
  EXPECT_EQ(Fs::Real().ReadAll(path).value(), RenderReport(FullInput()));
  (void)Fs::Real().RemoveAll(path);
}

}  // namespace
}  // namespace cox
