#include "cli/chaos_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lib/base/status.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

struct Row {
  int delivered = 0;
  int armed = 0;
  std::vector<double> noticed;
  std::vector<double> serving;
  std::vector<double> commit;
};

using Key = std::pair<std::string, std::string>;  // kind, role

std::map<Key, Row> Rows(const ChaosFigures& figures) {
  std::map<Key, Row> rows;
  const auto add = [](const std::optional<absl::Duration>& value,
                      std::vector<double>* out) {
    if (value.has_value()) out->push_back(absl::ToDoubleSeconds(*value));
  };
  for (const DeliveredFault& d : figures.faults) {
    Row& row = rows[{std::string(FaultKindName(d.fault.kind)), d.fault.role}];
    ++row.delivered;
    row.armed += d.fault.failpoint.empty() ? 0 : 1;
    if (d.fault.kind == FaultKind::kKill) {
      add(d.noticed, &row.noticed);
      add(d.serving, &row.serving);
    }
    add(d.commit, &row.commit);
  }
  return rows;
}

std::string Pair(const std::vector<double>& values) {
  if (values.empty()) return "-";
  return absl::StrFormat("%.2f / %.2f", Percentile(values, 0.5),
                         Percentile(values, 0.99));
}

}  // namespace

double Percentile(std::vector<double> values, double rank) {
  COX_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const double place = std::ceil(rank * static_cast<double>(values.size()));
  const auto index = static_cast<size_t>(std::max(place, 1.0)) - 1;
  return values[std::min(index, values.size() - 1)];
}

std::string ChaosTable(const ChaosFigures& figures) {
  std::string text = absl::StrFormat(
      "%-8s %-12s %9s %12s %16s %16s %16s\n", "fault", "role", "delivered",
      "at a border", "noticed", "serving again", "next commit");
  int total = 0;
  for (const auto& [key, row] : Rows(figures)) {
    absl::StrAppendFormat(&text, "%-8s %-12s %9d %12d %16s %16s %16s\n",
                          key.first, key.second, row.delivered, row.armed,
                          Pair(row.noticed), Pair(row.serving),
                          Pair(row.commit));
    total += row.delivered;
  }
  absl::StrAppendFormat(
      &text,
      "%d faults, mode %s, seed %d; times in seconds, p50 / p99, of faults "
      "that no later one hid\n"
      "%d runs, `cox run` started %d times (%d ends unexplained); %d steps "
      "committed, %d computed again; %d units; %.0f s\n"
      "ledger: %s; comparison: %s\n",
      total, figures.mode, figures.seed, figures.runs, figures.starts,
      figures.unexplained, figures.steps, figures.steps_redone, figures.units,
      figures.wall_s, figures.ledger, figures.comparison);
  for (const std::string& problem : figures.problems) {
    absl::StrAppend(&text, "  ", problem, "\n");
  }
  absl::StrAppendFormat(
      &text, "result: %s\n",
      figures.problems.empty() && figures.equal == figures.runs
          ? absl::StrCat("all ", figures.runs, " runs equal")
          : absl::StrCat(figures.equal, " of ", figures.runs,
                         " runs equal: FAILED"));
  return text;
}

std::string ChaosJson(const ChaosFigures& figures) {
  nlohmann::ordered_json json;
  json["mode"] = figures.mode;
  json["seed"] = figures.seed;
  json["runs"] = figures.runs;
  json["equal"] = figures.equal;
  json["starts"] = figures.starts;
  json["unexplained_ends"] = figures.unexplained;
  json["steps"] = figures.steps;
  json["steps_redone"] = figures.steps_redone;
  json["units"] = figures.units;
  json["calm_s"] = figures.calm_s;
  json["wall_s"] = figures.wall_s;
  json["ledger"] = figures.ledger;
  json["comparison"] = figures.comparison;
  json["problems"] = figures.problems;
  json["faults"] = nlohmann::ordered_json::array();
  const auto percentiles = [](const std::vector<double>& values) {
    nlohmann::ordered_json out;
    out["count"] = values.size();
    if (!values.empty()) {
      out["p50_s"] = Percentile(values, 0.5);
      out["p99_s"] = Percentile(values, 0.99);
      out["max_s"] = Percentile(values, 1.0);
    }
    return out;
  };
  for (const auto& [key, row] : Rows(figures)) {
    nlohmann::ordered_json out;
    out["kind"] = key.first;
    out["role"] = key.second;
    out["delivered"] = row.delivered;
    out["at_failpoint"] = row.armed;
    out["noticed"] = percentiles(row.noticed);
    out["serving"] = percentiles(row.serving);
    out["commit"] = percentiles(row.commit);
    json["faults"].push_back(std::move(out));
  }
  // In order of delivery.
  json["delivered"] = nlohmann::ordered_json::array();
  for (const DeliveredFault& d : figures.faults) {
    nlohmann::ordered_json out;
    out["fault"] = FaultText(d.fault);
    out["victim"] = d.victim;
    out["run"] = d.run;
    out["at"] = d.wall;
    const auto add = [&out](const char* key,
                            const std::optional<absl::Duration>& value) {
      if (value.has_value()) out[key] = absl::ToDoubleSeconds(*value);
    };
    add("noticed_s", d.noticed);
    add("serving_s", d.serving);
    add("commit_s", d.commit);
    json["delivered"].push_back(std::move(out));
  }
  return json.dump(2) + "\n";
}

}  // namespace cox
