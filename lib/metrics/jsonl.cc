#include "lib/metrics/jsonl.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using nlohmann::json;

std::string Quote(std::string_view text) {
  return json(std::string(text))
      .dump(-1, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
}

std::string NumberText(double value) {
  if (std::isnan(value)) return "\"NaN\"";
  if (std::isinf(value)) return value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  char buffer[40];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

// False if `value` is no number of ours.
bool ReadNumber(const json& value, double* number) {
  if (value.is_number()) {
    *number = value.get<double>();
    return true;
  }
  if (value == "NaN") {
    *number = std::numeric_limits<double>::quiet_NaN();
  } else if (value == "Infinity") {
    *number = std::numeric_limits<double>::infinity();
  } else if (value == "-Infinity") {
    *number = -std::numeric_limits<double>::infinity();
  } else {
    return false;
  }
  return true;
}

absl::StatusOr<MetricRow> ParseRow(std::string_view line) {
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  MetricRow row;
  const auto stage = object.find("stage");
  const auto step = object.find("step");
  if (stage == object.end() || !stage->is_string() || step == object.end() ||
      !step->is_number_integer()) {
    return absl::InvalidArgumentError("without 'stage' and 'step'");
  }
  row.stage = stage->get<std::string>();
  row.step = step->get<int64_t>();
  for (const auto& [key, value] : object.items()) {
    if (key == "stage" || key == "step" || key == "ts") continue;
    double number = 0;
    if (!ReadNumber(value, &number)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", key, "' is not a number"));
    }
    row.metrics[key] = number;
  }
  return row;
}

// The end of a file of `size` bytes: at least `lines` whole lines and what a
// crash left behind the last one, or all of it.
absl::StatusOr<std::string> ReadTail(Fs& fs, const std::string& path,
                                     uint64_t size, size_t lines) {
  std::string text;
  while (true) {
    // One more line end than lines: the first one may have lost its beginning.
    const auto ends = std::count(text.begin(), text.end(), '\n');
    if (text.size() == size || static_cast<size_t>(ends) > lines) {
      return text;
    }
    const uint64_t length =
        std::min(size, std::max<uint64_t>(2 * text.size(), 64 << 10));
    COX_ASSIGN_OR_RETURN(text, fs.ReadRange(path, size - length, length));
  }
}

}  // namespace

std::string FormatMetricRow(const MetricRow& row) {
  std::string line =
      absl::StrCat("{\"stage\":", Quote(row.stage), ",\"step\":", row.step);
  for (const auto& [name, value] : row.metrics) {
    absl::StrAppend(&line, ",", Quote(name), ":", NumberText(value));
  }
  line += "}";
  return line;
}

absl::StatusOr<std::unique_ptr<MetricsWriter>> MetricsWriter::Open(
    Fs& fs, const std::string& path, const Clock& clock) {
  if (fs.Exists(path)) {
    COX_ASSIGN_OR_RETURN(const uint64_t size, fs.FileSize(path));
    COX_ASSIGN_OR_RETURN(const std::string text, ReadTail(fs, path, size, 0));
    const size_t torn = text.size() - (text.rfind('\n') + 1);
    if (torn > 0) COX_RETURN_IF_ERROR(fs.Truncate(path, size - torn));
  }
  COX_ASSIGN_OR_RETURN(auto file, fs.OpenAppend(path));
  return std::unique_ptr<MetricsWriter>(
      new MetricsWriter(std::move(file), clock));
}

absl::Status MetricsWriter::Append(
    std::string_view stage, int64_t step,
    const std::map<std::string, double>& metrics) {
  for (const char* reserved : {"stage", "step", "ts"}) {
    if (metrics.contains(reserved)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a metric may not be called '", reserved, "'"));
    }
  }
  std::string line = FormatMetricRow({std::string(stage), step, metrics});
  line.pop_back();
  absl::StrAppend(
      &line, ",\"ts\":",
      absl::StrFormat(
          "%.3f", absl::ToDoubleSeconds(clock_.WallNow() - absl::UnixEpoch())),
      "}\n");
  return file_->Append(line);
}

absl::Status MetricsWriter::Close() { return file_->Close(); }

absl::StatusOr<std::vector<MetricRow>> ParseMetricRows(std::string_view text) {
  std::vector<MetricRow> rows;
  std::map<std::pair<std::string, int64_t>, size_t> index;
  int line_number = 0;
  for (size_t start = 0; start < text.size();) {
    const size_t end = text.find('\n', start);
    if (end == text.npos) break;  // torn by a crash, or still being written
    ++line_number;
    const std::string_view line = text.substr(start, end - start);
    start = end + 1;
    if (line.empty()) continue;
    absl::StatusOr<MetricRow> row = ParseRow(line);
    if (!row.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line ", line_number, ": ", std::string(row.status().message())));
    }
    const auto [it, inserted] =
        index.emplace(std::pair(row->stage, row->step), rows.size());
    if (inserted) {
      rows.push_back(*std::move(row));
    } else {
      rows[it->second] = *std::move(row);
    }
  }
  return rows;
}

absl::StatusOr<std::vector<MetricRow>> LoadMetricRows(const std::string& path,
                                                      Fs& fs) {
  COX_ASSIGN_OR_RETURN(const std::string text, fs.ReadAll(path));
  auto rows = ParseMetricRows(text);
  if (!rows.ok()) return Annotate(rows.status(), path);
  return rows;
}

absl::StatusOr<std::vector<MetricRow>> LoadLastMetricRows(
    const std::string& path, size_t lines, Fs& fs) {
  COX_ASSIGN_OR_RETURN(const uint64_t size, fs.FileSize(path));
  COX_ASSIGN_OR_RETURN(const std::string text, ReadTail(fs, path, size, lines));
  std::string_view tail = text;
  if (tail.size() < size) tail.remove_prefix(tail.find('\n') + 1);
  auto rows = ParseMetricRows(tail);
  if (!rows.ok()) return Annotate(rows.status(), path);
  return rows;
}

}  // namespace cox
