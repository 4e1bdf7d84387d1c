#include "lib/metrics/chart.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using ::testing::DoubleEq;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

int CountOf(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != text.npos;
       at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

TEST(NiceTicksTest, UsesRoundSteps) {
  EXPECT_THAT(NiceTicks(0, 10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(NiceTicks(0.03, 0.31, 3),
              ElementsAre(DoubleNear(0.1, 1e-12), DoubleNear(0.2, 1e-12),
                          DoubleNear(0.3, 1e-12)));
  EXPECT_THAT(NiceTicks(-1, 1, 4), ElementsAre(-1, -0.5, 0, 0.5, 1));
  EXPECT_THAT(NiceTicks(5, 5, 4), ElementsAre(5));
}

TEST(NiceTicksTest, StaysBoundedAndInside) {
  for (int e = -300; e <= 300; e += 7) {
    const double hi = std::pow(10.0, e);
    for (const double lo : {0.0, -hi, hi * 0.999}) {
      const std::vector<double> ticks = NiceTicks(lo, hi, 4);
      EXPECT_LE(ticks.size(), 12u);
      for (const double t : ticks) {
        EXPECT_GE(t, lo - std::abs(hi) * 1e-6);
        EXPECT_LE(t, hi + std::abs(hi) * 1e-6);
      }
    }
  }
}

TEST(TickLabelsTest, ShowsTheDigitsOfTheStep) {
  EXPECT_THAT(TickLabels({0, 0.05, 0.1}), ElementsAre("0.00", "0.05", "0.10"));
  EXPECT_THAT(TickLabels({0, 2, 4}), ElementsAre("0", "2", "4"));
  EXPECT_THAT(TickLabels({0, 5000, 10000}), ElementsAre("0", "5k", "10k"));
  EXPECT_THAT(TickLabels({0, 500000, 1000000}),
              ElementsAre("0", "0.5M", "1.0M"));
  EXPECT_THAT(TickLabels({0, 1e-5, 2e-5}), ElementsAre("0", "1e-5", "2e-5"));
  EXPECT_THAT(TickLabels({0.00048, 0.0005, 0.00052}),
              ElementsAre("4.8e-4", "5e-4", "5.2e-4"));
  EXPECT_THAT(TickLabels({0, 2e9}), ElementsAre("0", "2e9"));
}

TEST(SmoothTest, IsADebiasedAverage) {
  // weight .5: (.5*4)/.5 = 4; (.5*2 + .5*8)/.75 = 20/3.
  const auto s = Smooth({{0, 4}, {1, kNaN}, {2, 8}}, 0.5);
  EXPECT_THAT(s[0].y, DoubleEq(4));
  EXPECT_TRUE(std::isnan(s[1].y));
  EXPECT_THAT(s[2].y, DoubleNear(20.0 / 3, 1e-12));
  EXPECT_THAT(Smooth({{0, 3}, {1, 3}, {2, 3}}, 0.9)[2].y, DoubleNear(3, 1e-12));
}

TEST(RenderChartTest, HasAxesLegendAndHovers) {
  ChartOptions options;
  options.title = "KL <x>";
  options.unit = "nats";
  const std::string svg =
      RenderChart({{"a", {{1, 0}, {2, 1}}}, {"b", {{1, 2}, {3, 1}}}}, options);
  EXPECT_THAT(svg, HasSubstr("KL &lt;x&gt;"));
  EXPECT_EQ(CountOf(svg, "<g class=\"hover\">"), 3);  // x = 1, 2, 3
  EXPECT_THAT(svg, HasSubstr("<title>step 1\na: 0 nats\nb: 2 nats</title>"));
  EXPECT_THAT(svg, HasSubstr("<title>step 3\nb: 1 nats</title>"));
  EXPECT_EQ(CountOf(svg, "class=\"key\""), 2);
  EXPECT_EQ(CountOf(svg, "<path"), 2);
}

TEST(RenderChartTest, BreaksTheLineAtNaN) {
  const std::string svg =
      RenderChart({{"a", {{1, 0}, {2, kNaN}, {3, 1}, {4, 2}}}}, {});
  const size_t d = svg.find("d=\"M");
  const std::string path = svg.substr(d, svg.find("\"/>", d) - d);
  EXPECT_EQ(CountOf(path, "M"), 2);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(RenderChartTest, IsEmptyWithoutFinitePoints) {
  EXPECT_EQ(RenderChart({}, {}), "");
  EXPECT_EQ(RenderChart({{"a", {{1, kNaN}}}}, {}), "");
}

TEST(RenderChartTest, DrawsConstantsAndSinglePoints) {
  for (const double y : {0.0, 1.0, -5.0, 1e12}) {
    const std::string svg = RenderChart({{"a", {{7, y}}}}, {});
    EXPECT_THAT(svg, HasSubstr("<circle"));
    EXPECT_THAT(svg, Not(HasSubstr("nan")));
    EXPECT_THAT(svg, Not(HasSubstr("inf")));
  }
}

TEST(RenderChartTest, KeepsSpikesOfLongSeriesAndStaysSmall) {
  ChartSeries series{"a", {}};
  for (int i = 0; i < 100000; ++i) {
    series.points.push_back({static_cast<double>(i), i == 77777 ? 50.0 : 1.0});
  }
  ChartOptions options;
  options.smoothing = 0;
  const std::string svg = RenderChart({series}, options);
  EXPECT_LT(svg.size(), 50000u);
  EXPECT_LE(CountOf(svg, "<g class=\"hover\">"), 120);
  // The axis ends at 50 + 6 % of 49: 178 - 50 / 52.94 * 166 = 21.2.
  EXPECT_NE(svg.find(" 21.2L"), svg.npos);
}

TEST(RenderIntervalTest, PlacesValueAndEnds) {
  // 100 pixels from 5 to 105 for [0, 1].
  const std::string svg = RenderInterval({0.5, 0.2, 0.9}, 0, 1);
  EXPECT_THAT(svg, HasSubstr("x1=\"25.0\" x2=\"95.0\""));
  EXPECT_THAT(svg, HasSubstr("cx=\"55.0\""));
}

TEST(EscapeHtmlTest, LeavesNoMarkup) {
  EXPECT_EQ(EscapeHtml("<a b=\"c\" d='e'>&\n\t"),
            "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;\n\t");
  EXPECT_EQ(EscapeHtml(std::string("\0\x1b", 2)), "\xef\xbf\xbd\xef\xbf\xbd");
}

}  // namespace
}  // namespace cox
