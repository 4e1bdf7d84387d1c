#ifndef COX_LIB_METRICS_CHART_H_
#define COX_LIB_METRICS_CHART_H_

// Line charts as inline SVG for the report: no scripts, no external files, no
// inline styles (colours come from the page's style sheet through classes, so
// that light and dark both work). All text is escaped.

#include <string>
#include <string_view>
#include <vector>

namespace cox {

// &, <, >, " and ' as entities; control characters other than tab and newline
// (which no HTML may contain) as U+FFFD.
std::string EscapeHtml(std::string_view text);

// Round tick values covering [lo, hi], 2 to about `target` + 1 of them, with a
// step of 1, 2 or 5 times a power of ten. REQUIRES: finite, lo <= hi.
std::vector<double> NiceTicks(double lo, double hi, int target);

// Labels of ticks with just the digits that the step needs: "0.05", "1.5k".
std::vector<std::string> TickLabels(const std::vector<double>& ticks);

struct ChartPoint {
  double x = 0;
  double y = 0;  // non-finite values interrupt the line
};
struct ChartSeries {
  std::string label;
  std::vector<ChartPoint> points;  // in order of x
};
struct ChartOptions {
  std::string title;
  std::string unit;  // of y; "" = dimensionless
  std::string x_label = "step";
  // Exponential smoothing of lines with more than 40 points, the raw line pale
  // behind it: weight of the past, 0 = off.
  double smoothing = 0.8;
  double y_min_span = 0;  // smallest height of the y axis; 0 = any
  int max_hovers = 120;   // hover targets; they are most of the bytes
};

// Debiased exponential average, s_k = a*s_{k-1} + (1-a)*y_k over 1 - a^k;
// non-finite points stay as they are and leave the average alone.
std::vector<ChartPoint> Smooth(const std::vector<ChartPoint>& points,
                               double weight);

// A <figure> with title, legend (two series or more), axes and a hover target
// per x, evenly thinned to max_hovers. "" if no point is finite.
std::string RenderChart(const std::vector<ChartSeries>& series,
                        const ChartOptions& options);

// A small dot with its interval on the scale [lo, hi], as <svg>. REQUIRES:
// finite arguments.
struct IntervalMark {
  double value = 0;
  double low = 0;
  double high = 0;
};
std::string RenderInterval(const IntervalMark& mark, double lo, double hi);

}  // namespace cox

#endif  // COX_LIB_METRICS_CHART_H_
