#include "lib/metrics/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lib/metrics/chart.h"
#include "lib/metrics/registry.h"
#include "lib/metrics/report_style.h"

namespace cox {
namespace {

struct PanelSeries {
  std::string_view metric;
  std::string_view label;
};
struct Panel {
  std::string_view title;
  std::string_view unit;
  std::vector<PanelSeries> series;
};

// What is worth a chart of its own, in reading order. A stage shows the panels
// that it has metrics for.
const std::vector<Panel>& Panels() {
  static const auto* const panels = new std::vector<Panel>{
      {"Reward", "", {{"objective/scores", "reward"}}},
      {"Gold score", "", {{"objective/gold", "gold score"}}},
      {"KL to the reference", "nats per answer", {{"objective/kl", "KL"}}},
      {"KL coefficient", "", {{"kl_coef", "coefficient"}}},
      {"Loss", "nats per token", {{"loss/lm", "loss"}}},
      {"Held-out perplexity", "", {{"text/heldout_ppl", "perplexity"}}},
      {"Loss", "nats per pair", {{"loss/rm", "loss"}}},
      {"Loss", "", {{"loss/dpo", "loss"}}},
      {"Loss", "", {{"loss/kto", "loss"}}},
      {"Accuracy",
       "fraction",
       {{"rm/accuracy", "training"},
        {"rm/heldout_accuracy", "held out"},
        {"rm/human_accuracy", "human"},
        {"dpo/accuracy", "training"},
        {"dpo/heldout_accuracy", "held out"},
        {"kto/accuracy", "training"}}},
      {"Log-ratio to the reference, times beta",
       "",
       {{"dpo/reward_chosen", "chosen"},
        {"dpo/reward_rejected", "rejected"},
        {"kto/reward_desirable", "good"},
        {"kto/reward_undesirable", "bad"}}},
      {"Policy loss", "", {{"loss/policy", "policy loss"}}},
      {"Value loss", "", {{"loss/value", "value loss"}}},
      {"Answer length", "tokens", {{"rollout/length", "length"}}},
      {"Answers that stop", "fraction", {{"rollout/stop_frac", "share"}}},
      {"Entropy", "nats per token", {{"policy/entropy", "entropy"}}},
      {"Clipped tokens",
       "fraction",
       {{"policy/clipfrac", "policy"}, {"val/clipfrac", "value"}}},
      {"Explained variance", "", {{"val/explained_var", "explained"}}},
      {"Gradient norm",
       "",
       {{"grad_norm/policy", "policy"},
        {"grad_norm/value", "value"},
        {"grad_norm/lm", "model"},
        {"grad_norm/rm", "reward model"}}},
      {"Time per step",
       "s",
       {{"timing_s/wait_batch", "wait"},
        {"timing_s/score", "score"},
        {"timing_s/train", "train"},
        {"timing_s/publish", "publish"}}},
  };
  return *panels;
}

std::string_view StageTitle(std::string_view stage) {
  static constexpr std::pair<std::string_view, std::string_view> kTitles[] = {
      {"pretrain", "Pretraining"},
      {"sft", "Supervised fine-tuning"},
      {"collect", "Collection of comparisons"},
      {"rm", "Reward model"},
      {"rft", "Fine-tuning on the best answers"},
      {"dpo", "Preference optimisation (dpo)"},
      {"kto", "Preference optimisation (kto)"},
      {"ppo", "Reinforcement learning"},
      {"eval", "Evaluation"},
  };
  for (const auto& [name, title] : kTitles) {
    if (name == stage) return title;
  }
  return stage;
}

std::string Number(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "NaN" : "∞";
  const double size = std::abs(value);
  if (size != 0 && (size >= 1e6 || size < 1e-3)) {
    return absl::StrFormat("%.2e", value);
  }
  return absl::StrFormat(size >= 100  ? "%.1f"
                         : size >= 10 ? "%.2f"
                                      : "%.3f",
                         value);
}

// All points of one metric in one stage, by step.
std::vector<ChartPoint> PointsOf(const std::vector<const MetricRow*>& rows,
                                 std::string_view metric) {
  std::vector<ChartPoint> points;
  for (const MetricRow* row : rows) {
    const auto it = row->metrics.find(std::string(metric));
    if (it == row->metrics.end()) continue;
    points.push_back({static_cast<double>(row->step), it->second});
  }
  std::stable_sort(
      points.begin(), points.end(),
      [](const ChartPoint& a, const ChartPoint& b) { return a.x < b.x; });
  return points;
}

std::string PanelChart(const Panel& panel,
                       const std::vector<const MetricRow*>& rows,
                       std::set<std::string>* shown) {
  std::vector<ChartSeries> series;
  for (const PanelSeries& s : panel.series) {
    std::vector<ChartPoint> points = PointsOf(rows, s.metric);
    if (points.empty()) continue;
    shown->insert(std::string(s.metric));
    series.push_back({std::string(s.label), std::move(points)});
  }
  ChartOptions options;
  options.title = std::string(panel.title);
  options.unit = std::string(panel.unit);
  return RenderChart(series, options);
}

std::string StageCharts(const std::string& stage,
                        const std::vector<const MetricRow*>& rows) {
  std::set<std::string> shown;
  std::string charts;
  for (const Panel& panel : Panels()) {
    charts += PanelChart(panel, rows, &shown);
  }
  std::set<std::string> names;
  for (const MetricRow* row : rows) {
    for (const auto& [name, value] : row->metrics) names.insert(name);
  }
  std::string more;
  for (const std::string& name : names) {
    if (shown.contains(name)) continue;
    ChartOptions options;
    options.title = name;
    if (const MetricInfo* info = FindMetric(name)) {
      options.unit = std::string(info->unit);
    }
    options.max_hovers = 40;
    more += RenderChart({{name, PointsOf(rows, name)}}, options);
  }
  if (charts.empty() && more.empty()) return "";
  std::string out =
      absl::StrCat("<h3>", EscapeHtml(StageTitle(stage)), "</h3>\n");
  if (!charts.empty()) {
    absl::StrAppend(&out, "<div class=\"charts\">\n", charts, "</div>\n");
  }
  if (!more.empty()) {
    absl::StrAppend(&out,
                    "<details><summary>More metrics of this stage"
                    "</summary>\n<div class=\"charts\">\n",
                    more, "</div></details>\n");
  }
  return out;
}

std::string CurvesSection(const std::vector<MetricRow>& rows) {
  std::vector<std::string> stages;
  std::map<std::string, std::vector<const MetricRow*>> by_stage;
  for (const MetricRow& row : rows) {
    auto& list = by_stage[row.stage];
    if (list.empty()) stages.push_back(row.stage);
    list.push_back(&row);
  }
  std::string out;
  for (const std::string& stage : stages) {
    out += StageCharts(stage, by_stage[stage]);
  }
  return out.empty() ? "" : absl::StrCat("<h2>Curves</h2>\n", out);
}

// Scale and best value of one column of the evaluation table.
struct Column {
  std::string metric;
  std::string unit;
  Better better = Better::kHigher;
  double lo = 0;
  double hi = 0;
  double best = 0;
  bool any = false;
  int finite = 0;
};

void Extend(const EvalCell& cell, Column* column) {
  if (!std::isfinite(cell.value)) return;
  double lo = cell.value;
  double hi = cell.value;
  if (std::isfinite(cell.low) && std::isfinite(cell.high)) {
    lo = std::min(lo, cell.low);
    hi = std::max(hi, cell.high);
  }
  ++column->finite;
  if (!column->any) {
    column->any = true;
    column->lo = lo;
    column->hi = hi;
    column->best = cell.value;
    return;
  }
  column->lo = std::min(column->lo, lo);
  column->hi = std::max(column->hi, hi);
  if (column->better == Better::kHigher ? cell.value > column->best
                                        : cell.value < column->best) {
    column->best = cell.value;
  }
}

std::string EvalCellHtml(const EvalCell& cell, const Column& column) {
  const bool interval = std::isfinite(cell.value) && std::isfinite(cell.low) &&
                        std::isfinite(cell.high) && cell.high > cell.low;
  const bool best = column.better != Better::kNeither && column.finite > 1 &&
                    cell.value == column.best;
  std::string out = absl::StrCat(
      best ? "<td class=\"best\"" : "<td",
      cell.samples > 0 ? absl::StrCat(" title=\"n = ", cell.samples, "\"") : "",
      "><span class=\"value\">", Number(cell.value), "</span>");
  if (interval) {
    absl::StrAppend(&out, "<span class=\"ci\">[", Number(cell.low), ", ",
                    Number(cell.high), "]</span>",
                    RenderInterval({cell.value, cell.low, cell.high}, column.lo,
                                   column.hi));
  }
  return out + "</td>";
}

std::string EvalSection(const ReportInput& input) {
  if (input.eval.empty()) return "";
  std::vector<std::string> systems;
  std::vector<Column> columns;
  std::map<std::pair<std::string, std::string>, const EvalCell*> cells;
  for (const EvalCell& cell : input.eval) {
    if (std::find(systems.begin(), systems.end(), cell.system) ==
        systems.end()) {
      systems.push_back(cell.system);
    }
    auto column =
        std::find_if(columns.begin(), columns.end(),
                     [&](const Column& c) { return c.metric == cell.metric; });
    if (column == columns.end()) {
      columns.push_back({cell.metric, cell.unit, cell.better});
      column = columns.end() - 1;
    }
    Extend(cell, &*column);
    cells[{cell.system, cell.metric}] = &cell;
  }
  std::string out =
      "<h2>Final evaluation</h2>\n<div class=\"scroll\"><table>\n"
      "<thead><tr><th scope=\"col\">System</th>";
  for (const Column& column : columns) {
    absl::StrAppend(&out, "<th scope=\"col\">", EscapeHtml(column.metric),
                    " <span class=\"unit\">", EscapeHtml(column.unit),
                    column.better == Better::kHigher  ? " ↑"
                    : column.better == Better::kLower ? " ↓"
                                                      : "",
                    "</span></th>");
  }
  out += "</tr></thead>\n<tbody>\n";
  for (const std::string& system : systems) {
    absl::StrAppend(&out, "<tr><th scope=\"row\">", EscapeHtml(system),
                    "</th>");
    for (const Column& column : columns) {
      const auto it = cells.find({system, column.metric});
      out +=
          it == cells.end() ? "<td>–</td>" : EvalCellHtml(*it->second, column);
    }
    out += "</tr>\n";
  }
  absl::StrAppend(&out,
                  "</tbody></table></div>\n<p class=\"note\">Brackets "
                  "and bars are 95 % intervals; arrows point to the better "
                  "direction. ",
                  EscapeHtml(input.eval_note), "</p>\n");
  return out;
}

std::string Answer(const std::string& text, double score) {
  std::string out = absl::StrCat("<td>", EscapeHtml(text));
  if (!std::isnan(score)) {
    absl::StrAppend(&out, "\n<span class=\"score\">score ", Number(score),
                    "</span>");
  }
  return out + "</td>";
}

std::string SamplesSection(const ReportInput& input) {
  if (input.samples.empty()) return "";
  std::string out = absl::StrCat(
      "<h2>Samples</h2>\n<div class=\"scroll\"><table class=\"samples\">\n"
      "<thead><tr><th scope=\"col\">Prompt</th><th scope=\"col\">",
      EscapeHtml(input.before_label), "</th><th scope=\"col\">",
      EscapeHtml(input.after_label), "</th></tr></thead>\n<tbody>\n");
  for (const ReportSample& s : input.samples) {
    absl::StrAppend(&out, "<tr><td>", EscapeHtml(s.prompt), "</td>",
                    Answer(s.before, s.before_score),
                    Answer(s.after, s.after_score), "</tr>\n");
  }
  return out + "</tbody></table></div>\n";
}

std::string Head(const ReportInput& input) {
  std::string out = absl::StrCat(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src "
      "'none'; style-src 'unsafe-inline'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, "
      "initial-scale=1\">\n<title>",
      EscapeHtml(input.title), " – run report</title>\n<style>", kReportStyle,
      "</style>\n</head>\n<body>\n<main>\n<p class=\"kicker\">Coxswain run "
      "report</p>\n<h1>",
      EscapeHtml(input.title), "</h1>\n");
  if (!input.summary.empty()) {
    absl::StrAppend(&out, "<p class=\"summary\">", EscapeHtml(input.summary),
                    "</p>\n");
  }
  if (!input.facts.empty()) {
    out += "<dl class=\"facts\">\n";
    for (const auto& [label, value] : input.facts) {
      absl::StrAppend(&out, "<div><dt>", EscapeHtml(label), "</dt><dd>",
                      EscapeHtml(value), "</dd></div>\n");
    }
    out += "</dl>\n";
  }
  return out;
}

}  // namespace

std::string RenderReport(const ReportInput& input) {
  std::string out = Head(input);
  out += EvalSection(input);
  out += CurvesSection(input.rows);
  out += SamplesSection(input);
  if (!input.config_yaml.empty()) {
    absl::StrAppend(&out,
                    "<h2>Configuration</h2>\n<details><summary>Resolved "
                    "run.yaml</summary>\n<pre>",
                    EscapeHtml(input.config_yaml), "</pre></details>\n");
  }
  out +=
      "<footer>Pale lines are single steps, strong lines an exponential "
      "average. Formulas of all metrics: <code>cox explain METRIC</code>."
      "</footer>\n</main>\n</body>\n</html>\n";
  return out;
}

absl::Status WriteReport(const ReportInput& input, const std::string& path,
                         Fs& fs) {
  return WriteFileDurably(fs, path, RenderReport(input));
}

}  // namespace cox
