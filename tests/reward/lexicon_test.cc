#include "reward/lexicon.h"

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

constexpr double kTolerance = 1e-12;

LexiconScorer Small() {
  absl::StatusOr<LexiconScorer> scorer = LexiconScorer::FromText(
      "# comment\ngood\t2\nbad\t-2\nkind\t2.4\nno\t-1.2\n:D\t2.3\n");
  COX_CHECK(scorer.ok());
  return *std::move(scorer);
}

double Normalised(double sum) { return sum / std::sqrt(sum * sum + 15.0); }

std::string DataPath(std::string_view name) {
  const char* const root = std::getenv("COX_SOURCE_DIR");
  return JoinPath(root != nullptr ? root : ".",
                  JoinPath("examples/data", name));
}

TEST(LexiconScorerTest, SumsAndNormalises) {
  const LexiconScorer scorer = Small();
  EXPECT_EQ(scorer.size(), 5U);
  EXPECT_EQ(scorer.Score(""), 0.0);
  EXPECT_EQ(scorer.Score("a neutral text."), 0.0);
  // 2 / sqrt(4 + 15) = 0.4588
  EXPECT_NEAR(scorer.Score("Good."), 0.45883146774112354, kTolerance);
  EXPECT_NEAR(scorer.Score("good (good) 'good'"), Normalised(6), kTolerance);
  EXPECT_NEAR(scorer.Score("good and bad"), 0.0, kTolerance);
}

TEST(LexiconScorerTest, NegationFlipsWithinThreeWords) {
  const LexiconScorer scorer = Small();
  EXPECT_NEAR(scorer.Score("not good"), Normalised(2 * -0.74), kTolerance);
  EXPECT_NEAR(scorer.Score("isn't all that good"), Normalised(2 * -0.74),
              kTolerance);
  EXPECT_NEAR(scorer.Score("not one two three good"), Normalised(2),
              kTolerance);
  EXPECT_NEAR(scorer.Score("no good"), Normalised(2 * -0.74), kTolerance);
  EXPECT_NEAR(scorer.Score("no"), Normalised(-1.2), kTolerance);
  EXPECT_NEAR(scorer.Score("least good"), Normalised(2 * -0.74), kTolerance);
  EXPECT_NEAR(scorer.Score("at least good"), Normalised(2), kTolerance);
}

TEST(LexiconScorerTest, BoostersFadeWithDistance) {
  const LexiconScorer scorer = Small();
  EXPECT_NEAR(scorer.Score("very good"), Normalised(2.293), kTolerance);
  EXPECT_NEAR(scorer.Score("very bad"), Normalised(-2.293), kTolerance);
  EXPECT_NEAR(scorer.Score("very x good"), Normalised(2 + 0.293 * 0.95),
              kTolerance);
  EXPECT_NEAR(scorer.Score("very x y good"), Normalised(2 + 0.293 * 0.9),
              kTolerance);
  EXPECT_NEAR(scorer.Score("slightly good"), Normalised(2 - 0.293), kTolerance);
  // "kind of" dampens at distance 2, and "kind" says nothing by itself.
  EXPECT_NEAR(scorer.Score("kind of good"), Normalised(2 - 0.293 * 0.95),
              kTolerance);
}

TEST(LexiconScorerTest, CapitalsCountInMixedTextOnly) {
  const LexiconScorer scorer = Small();
  EXPECT_NEAR(scorer.Score("really? GOOD"), Normalised(2 + 0.733 + 0.293),
              kTolerance);
  EXPECT_NEAR(scorer.Score("VERY GOOD"), Normalised(2.293), kTolerance);
}

TEST(LexiconScorerTest, ButShiftsTheWeight) {
  const LexiconScorer scorer = Small();
  EXPECT_NEAR(scorer.Score("good but bad"), Normalised(2 * 0.5 - 2 * 1.5),
              kTolerance);
}

TEST(LexiconScorerTest, PunctuationEmphasises) {
  const LexiconScorer scorer = Small();
  EXPECT_NEAR(scorer.Score("good!!"), Normalised(2 + 2 * 0.292), kTolerance);
  EXPECT_NEAR(scorer.Score("bad!!!!!!"), Normalised(-2 - 4 * 0.292),
              kTolerance);
  EXPECT_NEAR(scorer.Score("good?"), Normalised(2), kTolerance);
  EXPECT_NEAR(scorer.Score("good??"), Normalised(2 + 2 * 0.18), kTolerance);
  EXPECT_NEAR(scorer.Score("good????"), Normalised(2 + 0.96), kTolerance);
  EXPECT_EQ(scorer.Score("nothing here!!!"), 0.0);
}

TEST(LexiconScorerTest, EmoticonsKeepTheirPunctuation) {
  EXPECT_NEAR(Small().Score(":D"), Normalised(2.3), kTolerance);
}

TEST(LexiconScorerTest, AnyBytesAreScoredWithinBounds) {
  const LexiconScorer scorer = Small();
  std::string bytes;
  for (int i = 0; i < 256; ++i) {
    bytes.push_back(static_cast<char>(i));
  }
  std::string much;
  for (int i = 0; i < 10000; ++i) {
    much += "good! ";
  }
  EXPECT_GE(scorer.Score(bytes), -1.0);
  EXPECT_LE(scorer.Score(much), 1.0);
  EXPECT_GT(scorer.Score(much), 0.99);
}

TEST(LexiconScorerTest, BadLexiconsAreErrors) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(LexiconScorer::FromText("good\t2\nbad 3\n"),
              StatusIs(kInvalid, HasSubstr("line 2: expected a word")));
  EXPECT_THAT(LexiconScorer::FromText("good\t2x\n"), StatusIs(kInvalid));
  EXPECT_THAT(LexiconScorer::FromText("good\t5\n"), StatusIs(kInvalid));
  EXPECT_THAT(LexiconScorer::FromText("good\tnan\n"), StatusIs(kInvalid));
  EXPECT_THAT(LexiconScorer::FromText("\t2\n"), StatusIs(kInvalid));
  EXPECT_THAT(LexiconScorer::FromText("# nothing\n"), StatusIs(kInvalid));
  EXPECT_THAT(LexiconScorer::FromFile(Fs::Real(), "/nonexistent/x"),
              StatusIs(absl::StatusCode::kNotFound));
}

// The gold reward is only as good as its agreement with people: the share of
// (positive, negative) pairs that it orders as they did, ties counted half.
TEST(LexiconScorerTest, AgreesWithHumanLabelsOfReviews) {
  ASSERT_OK_AND_ASSIGN(const LexiconScorer scorer,
                       LexiconScorer::FromFile(
                           Fs::Real(), DataPath("lexicon/vader_lexicon.tsv")));
  ASSERT_OK_AND_ASSIGN(const std::string labelled,
                       Fs::Real().ReadAll(DataPath("reviews/labelled.tsv")));
  std::vector<double> positive;
  std::vector<double> negative;
  for (size_t at = 0; at < labelled.size();) {
    const size_t end = labelled.find('\n', at);
    const std::string_view text(labelled.data() + at + 2, end - at - 2);
    (labelled[at] == '1' ? positive : negative).push_back(scorer.Score(text));
    at = end + 1;
  }
  ASSERT_GT(positive.size(), 1400U);
  ASSERT_GT(negative.size(), 1400U);
  double agreed = 0.0;
  for (const double p : positive) {
    for (const double n : negative) {
      agreed += p > n ? 1.0 : p == n ? 0.5 : 0.0;
    }
  }
  const double pairs = static_cast<double>(positive.size()) *
                       static_cast<double>(negative.size());
  EXPECT_GE(agreed / pairs, 0.88);
}

}  // namespace
}  // namespace cox
