#include "lib/metrics/prometheus.h"

#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace cox {
namespace {

std::string Escape(std::string_view text, bool quotes) {
  std::string out;
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\\' || (c == '"' && quotes)) {
      out += '\\';
      out += c;
    } else {
      out += c;
    }
  }
  return out;
}

// {a="x",b="y"}, or "".
std::string RenderLabels(const PrometheusLabels& labels) {
  if (labels.empty()) return "";
  std::string out = "{";
  for (const auto& [name, value] : labels) {
    absl::StrAppend(&out, out.size() > 1 ? "," : "", PrometheusName(name),
                    "=\"", Escape(value, /*quotes=*/true), "\"");
  }
  return out + "}";
}

std::string ValueText(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  char buffer[40];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

}  // namespace

std::string PrometheusName(std::string_view name) {
  std::string out;
  for (const char c : name) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool digit = c >= '0' && c <= '9';
    if (digit && out.empty()) out += '_';
    out += letter || digit || c == '_' || c == ':' ? c : '_';
  }
  return out.empty() ? "_" : out;
}

void PrometheusRegistry::Describe(std::string_view name,
                                  std::string_view help) {
  MutexLock lock(&mutex_);
  families_[PrometheusName(name)].help = std::string(help);
}

double* PrometheusRegistry::Find(std::string_view name, Type type,
                                 const PrometheusLabels& labels) {
  Family& family = families_[PrometheusName(name)];
  if (family.typed && family.type != type) return nullptr;
  const std::string key = RenderLabels(labels);
  const auto it = family.series.find(key);
  if (it != family.series.end()) return &it->second;
  if (series_ >= kMaxSeries) {
    dropped_ += 1;
    return nullptr;
  }
  ++series_;
  family.type = type;
  family.typed = true;
  return &family.series[key];
}

void PrometheusRegistry::Add(std::string_view name, double delta,
                             const PrometheusLabels& labels) {
  if (!(delta >= 0)) return;
  MutexLock lock(&mutex_);
  if (double* value = Find(name, Type::kCounter, labels)) *value += delta;
}

void PrometheusRegistry::Set(std::string_view name, double value,
                             const PrometheusLabels& labels) {
  MutexLock lock(&mutex_);
  if (double* slot = Find(name, Type::kGauge, labels)) *slot = value;
}

void PrometheusRegistry::SetMetrics(
    std::string_view stage, const std::map<std::string, double>& metrics) {
  const PrometheusLabels labels = {{"stage", std::string(stage)}};
  for (const auto& [name, value] : metrics) {
    Set(absl::StrCat("cox_", name), value, labels);
  }
}

std::string PrometheusRegistry::Text() const {
  std::map<std::string, Family> families;
  double dropped = 0;
  {
    MutexLock lock(&mutex_);
    families = families_;
    dropped = dropped_;
  }
  Family& own = families["cox_metrics_dropped_series"];
  own.typed = true;
  own.type = Type::kCounter;
  own.help = "Updates of series beyond the limit.";
  own.series[""] = dropped;
  std::string text;
  for (const auto& [name, family] : families) {
    if (!family.typed) continue;
    if (!family.help.empty()) {
      absl::StrAppend(&text, "# HELP ", name, " ",
                      Escape(family.help, /*quotes=*/false), "\n");
    }
    absl::StrAppend(&text, "# TYPE ", name, " ",
                    family.type == Type::kCounter ? "counter" : "gauge", "\n");
    for (const auto& [labels, value] : family.series) {
      absl::StrAppend(&text, name, labels, " ", ValueText(value), "\n");
    }
  }
  return text;
}

}  // namespace cox
