#include "cli/row_table.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/str_cat.h"

namespace cox {
namespace {

bool IsHash(const std::string& text) {
  return text.size() == 64 &&
         std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::isxdigit(c) != 0; });
}

std::string CellText(const nlohmann::ordered_json& cell) {
  if (cell.is_null()) {
    return "-";
  }
  if (!cell.is_string()) {
    return cell.dump();
  }
  const std::string text = cell.get<std::string>();
  return IsHash(text) ? ShortHash(text) : text;
}

}  // namespace

std::string ShortHash(const std::string& hash) { return hash.substr(0, 12); }

std::string FormatRows(const std::vector<nlohmann::ordered_json>& rows,
                       bool json) {
  if (json) {
    return nlohmann::ordered_json(rows).dump(
               1, ' ', false, nlohmann::json::error_handler_t::replace) +
           "\n";
  }
  if (rows.empty()) {
    return "no rows\n";
  }
  std::vector<std::vector<std::string>> cells(1);
  for (const auto& [key, value] : rows[0].items()) {
    cells[0].push_back(key);
  }
  for (const nlohmann::ordered_json& row : rows) {
    std::vector<std::string>& line = cells.emplace_back();
    for (const auto& [key, value] : row.items()) {
      line.push_back(CellText(value));
    }
  }
  std::vector<size_t> widths(cells[0].size(), 0);
  for (const auto& line : cells) {
    for (size_t i = 0; i < std::min(line.size(), widths.size()); ++i) {
      widths[i] = std::max(widths[i], line[i].size());
    }
  }
  std::string out;
  for (size_t row = 0; row < cells.size(); ++row) {
    for (size_t i = 0; i < cells[row].size(); ++i) {
      const bool last = i + 1 == cells[row].size();
      const std::string pad(last ? 0 : widths[i] + 2 - cells[row][i].size(),
                            ' ');
      const bool number =
          row > 0 && !last &&
          cells[row][i].find_first_not_of("0123456789.-") == std::string::npos;
      // Numbers are read from the right.
      out += number && pad.size() >= 2
                 ? absl::StrCat(pad.substr(2), cells[row][i], "  ")
                 : absl::StrCat(cells[row][i], pad);
    }
    out += '\n';
  }
  return out;
}

}  // namespace cox
