#include "lib/metrics/chart.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace cox {
namespace {

constexpr double kWidth = 400;
constexpr double kHeight = 212;
constexpr double kLeft = 50;
constexpr double kRight = 14;
constexpr double kTop = 12;
constexpr double kBottom = 34;
constexpr size_t kMaxLinePoints = 600;
constexpr size_t kSmoothFrom = 40;
constexpr size_t kDotsUpTo = 24;

std::string Coord(double value) { return absl::StrFormat("%.1f", value); }

std::string Value(double value) { return absl::StrFormat("%.5g", value); }

struct Range {
  double lo = std::numeric_limits<double>::infinity();
  double hi = -std::numeric_limits<double>::infinity();
  void Add(double v) {
    lo = std::min(lo, v);
    hi = std::max(hi, v);
  }
  bool empty() const { return lo > hi; }
};

// Linear maps from data to the plot's pixels.
struct Frame {
  Range x;
  Range y;
  double X(double v) const {
    const double span = x.hi > x.lo ? x.hi - x.lo : 1;
    return kLeft + (v - x.lo) / span * (kWidth - kLeft - kRight);
  }
  double Y(double v) const {
    const double span = y.hi > y.lo ? y.hi - y.lo : 1;
    return kHeight - kBottom - (v - y.lo) / span * (kHeight - kTop - kBottom);
  }
};

Range YRange(const std::vector<ChartSeries>& series,
             const ChartOptions& options, Range* x) {
  Range y;
  for (const ChartSeries& s : series) {
    for (const ChartPoint& p : s.points) {
      if (!std::isfinite(p.y) || !std::isfinite(p.x)) continue;
      x->Add(p.x);
      y.Add(p.y);
    }
  }
  if (y.empty()) return y;
  // Air above and below; a constant gets an axis around it.
  double pad = (y.hi - y.lo) * 0.06;
  if (y.hi == y.lo) pad = std::max(std::abs(y.hi) * 0.1, 1e-6);
  const double lack = options.y_min_span - (y.hi - y.lo + 2 * pad);
  if (lack > 0) pad += lack / 2;
  const bool touches_zero = y.lo >= 0 && y.lo - pad < 0;
  y.lo = touches_zero ? 0 : y.lo - pad;
  y.hi += pad;
  return y;
}

std::string Axes(const Frame& frame, const ChartOptions& options) {
  std::string out;
  const std::vector<double> ys = NiceTicks(frame.y.lo, frame.y.hi, 5);
  const std::vector<std::string> y_labels = TickLabels(ys);
  for (size_t i = 0; i < ys.size(); ++i) {
    if (ys[i] < frame.y.lo || ys[i] > frame.y.hi) continue;
    const std::string y = Coord(frame.Y(ys[i]));
    absl::StrAppend(&out, "<line class=\"grid\" x1=\"", kLeft, "\" x2=\"",
                    kWidth - kRight, "\" y1=\"", y, "\" y2=\"", y, "\"/>");
    absl::StrAppend(&out, "<text class=\"tick\" text-anchor=\"end\" x=\"",
                    kLeft - 7, "\" y=\"", Coord(frame.Y(ys[i]) + 3.5), "\">",
                    y_labels[i], "</text>");
  }
  const std::vector<double> xs = NiceTicks(frame.x.lo, frame.x.hi, 6);
  const std::vector<std::string> x_labels = TickLabels(xs);
  const double base = kHeight - kBottom;
  for (size_t i = 0; i < xs.size(); ++i) {
    if (xs[i] < frame.x.lo || xs[i] > frame.x.hi) continue;
    const std::string x = Coord(frame.X(xs[i]));
    absl::StrAppend(&out, "<line class=\"axis\" x1=\"", x, "\" x2=\"", x,
                    "\" y1=\"", base, "\" y2=\"", base + 4, "\"/>");
    absl::StrAppend(&out, "<text class=\"tick\" text-anchor=\"middle\" x=\"", x,
                    "\" y=\"", base + 16, "\">", x_labels[i], "</text>");
  }
  absl::StrAppend(&out, "<line class=\"axis\" x1=\"", kLeft, "\" x2=\"",
                  kWidth - kRight, "\" y1=\"", base, "\" y2=\"", base, "\"/>");
  absl::StrAppend(&out, "<text class=\"label\" text-anchor=\"end\" x=\"",
                  kWidth - kRight, "\" y=\"", kHeight - 4, "\">",
                  EscapeHtml(options.x_label), "</text>");
  return out;
}

// Thins a long line to what the eye can tell apart: minimum and maximum of
// each bucket, so that spikes survive.
std::vector<ChartPoint> Thin(const std::vector<ChartPoint>& points) {
  if (points.size() <= kMaxLinePoints) return points;
  std::vector<ChartPoint> out;
  const size_t bucket = points.size() / (kMaxLinePoints / 2) + 1;
  for (size_t i = 0; i < points.size(); i += bucket) {
    const auto begin = points.begin() + static_cast<std::ptrdiff_t>(i);
    const auto end = points.begin() + static_cast<std::ptrdiff_t>(
                                          std::min(points.size(), i + bucket));
    const auto [lo, hi] = std::minmax_element(
        begin, end,
        [](const ChartPoint& a, const ChartPoint& b) { return a.y < b.y; });
    out.push_back(lo < hi ? *lo : *hi);
    if (lo != hi) out.push_back(lo < hi ? *hi : *lo);
  }
  return out;
}

std::string Line(const Frame& frame, const std::vector<ChartPoint>& points,
                 const std::string& css_class) {
  std::string path;
  bool pen_up = true;
  for (const ChartPoint& p : Thin(points)) {
    if (!std::isfinite(p.y) || !std::isfinite(p.x)) {
      pen_up = true;
      continue;
    }
    absl::StrAppend(&path, pen_up ? "M" : "L", Coord(frame.X(p.x)), " ",
                    Coord(frame.Y(p.y)));
    pen_up = false;
  }
  return absl::StrCat("<path class=\"", css_class, "\" d=\"", path, "\"/>");
}

std::string SeriesMarks(const Frame& frame, const ChartSeries& series,
                        size_t color, double smoothing) {
  const std::string c = absl::StrCat("c", color % 4);
  std::string out;
  if (smoothing > 0 && series.points.size() > kSmoothFrom) {
    out += Line(frame, series.points, absl::StrCat("line raw ", c));
    out +=
        Line(frame, Smooth(series.points, smoothing), absl::StrCat("line ", c));
    return out;
  }
  out += Line(frame, series.points, absl::StrCat("line ", c));
  if (series.points.size() > kDotsUpTo) return out;
  for (const ChartPoint& p : series.points) {
    if (!std::isfinite(p.y)) continue;
    absl::StrAppend(&out, "<circle class=\"dot ", c, "\" cx=\"",
                    Coord(frame.X(p.x)), "\" cy=\"", Coord(frame.Y(p.y)),
                    "\" r=\"2.6\"/>");
  }
  return out;
}

// Invisible columns with a <title>, one per x, that show a rule and dots when
// the pointer is over them.
std::string Hovers(const Frame& frame, const std::vector<ChartSeries>& series,
                   const ChartOptions& options) {
  std::map<double, std::vector<size_t>> at;  // x -> index per series + 1
  for (size_t s = 0; s < series.size(); ++s) {
    for (size_t i = 0; i < series[s].points.size(); ++i) {
      if (!std::isfinite(series[s].points[i].y)) continue;
      auto& slots = at[series[s].points[i].x];
      slots.resize(series.size());
      slots[s] = i + 1;
    }
  }
  std::vector<double> xs;
  const size_t stride =
      at.size() / static_cast<size_t>(std::max(1, options.max_hovers)) + 1;
  size_t k = 0;
  for (const auto& [x, slots] : at) {
    if (k++ % stride == 0) xs.push_back(x);
  }
  std::string out;
  for (size_t i = 0; i < xs.size(); ++i) {
    const double x = frame.X(xs[i]);
    const double left = i == 0 ? kLeft : (frame.X(xs[i - 1]) + x) / 2;
    const double right =
        i + 1 == xs.size() ? kWidth - kRight : (x + frame.X(xs[i + 1])) / 2;
    std::string title =
        absl::StrCat(EscapeHtml(options.x_label), " ", Value(xs[i]));
    std::string dots;
    const std::vector<size_t>& slots = at[xs[i]];
    for (size_t s = 0; s < slots.size(); ++s) {
      if (slots[s] == 0) continue;
      const double y = series[s].points[slots[s] - 1].y;
      absl::StrAppend(&title, "\n", EscapeHtml(series[s].label), ": ", Value(y),
                      options.unit.empty() ? "" : " ",
                      EscapeHtml(options.unit));
      absl::StrAppend(&dots, "<circle class=\"c", s % 4, "\" cx=\"", Coord(x),
                      "\" cy=\"", Coord(frame.Y(y)), "\" r=\"3.5\"/>");
    }
    absl::StrAppend(&out, "<g class=\"hover\"><title>", title,
                    "</title><rect x=\"", Coord(left), "\" y=\"", kTop,
                    "\" width=\"", Coord(std::max(0.5, right - left)),
                    "\" height=\"", kHeight - kTop - kBottom, "\"/>",
                    "<line x1=\"", Coord(x), "\" x2=\"", Coord(x), "\" y1=\"",
                    kTop, "\" y2=\"", kHeight - kBottom, "\"/>", dots, "</g>");
  }
  return out;
}

std::string Caption(const std::vector<ChartSeries>& series,
                    const ChartOptions& options) {
  std::string out = absl::StrCat("<figcaption><span class=\"title\">",
                                 EscapeHtml(options.title), "</span>");
  if (!options.unit.empty()) {
    absl::StrAppend(&out, " <span class=\"unit\">", EscapeHtml(options.unit),
                    "</span>");
  }
  if (series.size() > 1) {
    out += "<span class=\"legend\">";
    for (size_t i = 0; i < series.size(); ++i) {
      absl::StrAppend(&out,
                      "<span class=\"key\"><svg width=\"14\" "
                      "height=\"8\" aria-hidden=\"true\"><line class=\"line c",
                      i % 4, "\" x1=\"0\" x2=\"14\" y1=\"4\" y2=\"4\"/></svg>",
                      EscapeHtml(series[i].label), "</span>");
    }
    out += "</span>";
  }
  return out + "</figcaption>";
}

// "5.4e-5", "2e9", "0".
std::string CompactNumber(double value) {
  if (value == 0) return "0";
  const int exponent =
      static_cast<int>(std::floor(std::log10(std::abs(value)) + 1e-12));
  return absl::StrFormat("%.3ge%d", value / std::pow(10.0, exponent), exponent);
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if ((byte < 0x20 && c != '\t' && c != '\n') || byte == 0x7f) {
          out += "\xef\xbf\xbd";
        } else {
          out += c;
        }
    }
  }
  return out;
}

std::vector<double> NiceTicks(double lo, double hi, int target) {
  if (!(hi > lo)) return {lo};
  const double raw = (hi - lo) / std::max(1, target);
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = power;
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    step = factor * power;
    if (step >= raw * (1 - 1e-9)) break;
  }
  std::vector<double> ticks;
  // Counting in steps keeps 0.1 + 0.2 from showing.
  const double first = std::ceil(lo / step - 1e-9);
  const double last = std::floor(hi / step + 1e-9);
  for (double k = first; k <= last && ticks.size() < 100; k += 1) {
    ticks.push_back(k == 0 ? 0.0 : k * step);
  }
  return ticks;
}

std::vector<std::string> TickLabels(const std::vector<double>& ticks) {
  double largest = 0;
  for (const double t : ticks) largest = std::max(largest, std::abs(t));
  const double step = ticks.size() > 1 ? ticks[1] - ticks[0] : largest;
  std::vector<std::string> labels;
  const double scale = largest >= 1e6 ? 1e6 : largest >= 1e4 ? 1e3 : 1;
  const char* suffix = scale == 1e6 ? "M" : scale == 1e3 ? "k" : "";
  int decimals = 0;
  for (double s = step / scale; decimals < 6; ++decimals, s *= 10) {
    if (std::abs(s - std::round(s)) < 1e-6 * std::max(1.0, s)) break;
  }
  // Zeros before and after the digits would not fit beside the axis.
  const bool compact = largest != 0 && (largest >= 1e9 || decimals > 4);
  for (const double t : ticks) {
    labels.push_back(
        compact ? CompactNumber(t)
        : t == 0 && scale > 1
            ? "0"
            : absl::StrCat(absl::StrFormat("%.*f", decimals, t / scale),
                           suffix));
  }
  return labels;
}

std::vector<ChartPoint> Smooth(const std::vector<ChartPoint>& points,
                               double weight) {
  std::vector<ChartPoint> out = points;
  double average = 0;
  double norm = 1;
  for (ChartPoint& p : out) {
    if (!std::isfinite(p.y)) continue;
    average = weight * average + (1 - weight) * p.y;
    norm *= weight;
    p.y = average / (1 - norm);
  }
  return out;
}

std::string RenderChart(const std::vector<ChartSeries>& series,
                        const ChartOptions& options) {
  Frame frame;
  frame.y = YRange(series, options, &frame.x);
  if (frame.y.empty()) return "";
  std::string svg = absl::StrCat("<svg class=\"chart\" viewBox=\"0 0 ", kWidth,
                                 " ", kHeight, "\" role=\"img\" aria-label=\"",
                                 EscapeHtml(options.title), "\">");
  svg += Axes(frame, options);
  for (size_t i = 0; i < series.size(); ++i) {
    svg += SeriesMarks(frame, series[i], i, options.smoothing);
  }
  svg += Hovers(frame, series, options);
  svg += "</svg>";
  return absl::StrCat("<figure>", Caption(series, options), svg, "</figure>\n");
}

std::string RenderInterval(const IntervalMark& mark, double lo, double hi) {
  constexpr double kMarkWidth = 110;
  constexpr double kInset = 5;
  const double span = hi > lo ? hi - lo : 1;
  const auto x = [&](double v) {
    return Coord(kInset + std::clamp((v - lo) / span, 0.0, 1.0) *
                              (kMarkWidth - 2 * kInset));
  };
  return absl::StrCat("<svg class=\"interval\" viewBox=\"0 0 ", kMarkWidth,
                      " 12\" aria-hidden=\"true\"><line class=\"rail\" x1=\"",
                      kInset, "\" x2=\"", kMarkWidth - kInset,
                      "\" y1=\"6\" y2=\"6\"/>", "<line class=\"span\" x1=\"",
                      x(mark.low), "\" x2=\"", x(mark.high),
                      "\" y1=\"6\" y2=\"6\"/><circle cx=\"", x(mark.value),
                      "\" cy=\"6\" r=\"3.6\"/></svg>");
}

}  // namespace cox
