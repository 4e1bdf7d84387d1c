#include "lib/data/stop_strings.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;

TEST(StopScannerTest, HoldsBackWhatCouldBecomeAStopString) {
  StopScanner scanner({"\nUser:", "END"});
  EXPECT_EQ(scanner.Push("yes\nUs"), "yes");
  EXPECT_EQ(scanner.Push("es E"), "\nUses ");
  EXPECT_EQ(scanner.Push("N"), "");
  EXPECT_FALSE(scanner.stopped());
  EXPECT_EQ(scanner.Push("D and more"), "");
  EXPECT_TRUE(scanner.stopped());
  EXPECT_EQ(scanner.Push("nothing comes after"), "");
  EXPECT_EQ(scanner.Finish(), "");
}

TEST(StopScannerTest, TheFirstToBeginWins) {
  StopScanner scanner({"bc", "abcd"});
  EXPECT_EQ(scanner.Push("xabcd"), "x");
  EXPECT_TRUE(scanner.stopped());
}

TEST(StopScannerTest, FinishGivesWhatWaits) {
  StopScanner scanner({"abc"});
  EXPECT_EQ(scanner.Push("xab"), "x");
  EXPECT_EQ(scanner.Finish(), "ab");
  EXPECT_FALSE(scanner.stopped());
}

TEST(StopScannerTest, TextBeforeTheLeastLengthDoesNotStop) {
  StopScanner scanner({"ab"});
  EXPECT_EQ(scanner.Push("abx", /*may_stop=*/false), "abx");
  EXPECT_EQ(scanner.Push("a", /*may_stop=*/false), "");
  EXPECT_EQ(scanner.Push("b"), "");
  EXPECT_TRUE(scanner.stopped());
}

// However a text is cut, the same text comes out before the same stop.
TEST(StopScannerTest, CutsDoNotMatter) {
  const std::vector<std::string> stops = {"aab", "bb", "abab"};
  for (uint64_t trial = 0; trial < 2000; ++trial) {
    CounterRng rng(trial, "text");
    std::string text;
    for (uint64_t n = rng.NextBelow(12); n > 0; --n) {
      text += static_cast<char>('a' + rng.NextBelow(3));
    }
    size_t first = std::string::npos;
    for (const std::string& stop : stops) {
      first = std::min(first, text.find(stop));
    }
    StopScanner scanner(stops);
    std::string out;
    for (size_t at = 0; at < text.size() && !scanner.stopped();) {
      const size_t n = 1 + rng.NextBelow(2);
      out += scanner.Push(std::string_view(text).substr(at, n));
      at += n;
    }
    if (!scanner.stopped()) out += scanner.Finish();
    EXPECT_EQ(scanner.stopped(), first != std::string::npos) << text;
    // Cut inside an overlap, a stop that begins later may be complete first.
    if (first == std::string::npos) {
      EXPECT_EQ(out, text);
    } else {
      EXPECT_TRUE(text.starts_with(out)) << text;
      EXPECT_TRUE(std::ranges::any_of(
          stops,
          [&](const std::string& stop) {
            return text.substr(out.size()).starts_with(stop);
          }))
          << text << " " << out;
    }
  }
}

TEST(ValidateStopStringsTest, RefusesEmptyAndHuge) {
  EXPECT_OK(ValidateStopStrings({"a", "\n\n"}));
  for (const std::string& bad : {std::string(), std::string(1025, 'x')}) {
    EXPECT_THAT(ValidateStopStrings({"a", bad}),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace cox
