#include "cli/eval_table.h"

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

std::string Cell(const Json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end() || !found->is_object()) {
    return "-";
  }
  return absl::StrFormat("%.3f [%.3f, %.3f]", (*found)["mean"].get<double>(),
                         (*found)["low"].get<double>(),
                         (*found)["high"].get<double>());
}

std::string Number(const Json& row, const char* key, int digits) {
  const auto found = row.find(key);
  if (found == row.end() || !found->is_number()) {
    return "-";
  }
  return absl::StrFormat("%.*f", digits, found->get<double>());
}

}  // namespace

absl::StatusOr<std::string> FormatEvalTable(std::string_view eval_json) {
  const Json json = Json::parse(eval_json, nullptr, false);
  if (!json.is_object() || !json.contains("rows") || !json["rows"].is_array()) {
    return absl::DataLossError(
        "eval.json: expected an object with a list \"rows\"");
  }
  std::string out = absl::StrFormat(
      "%-10s %5s  %-23s %-24s %-23s %6s %6s %6s %6s\n", "policy", "n", "gold",
      "reward", "KL (nats/answer)", "tokens", "stop", "dist-2", "ref-ppl");
  for (const Json& row : json["rows"]) {
    const std::string length =
        row.contains("length") && row["length"].is_object()
            ? absl::StrFormat("%.1f", row["length"]["mean"].get<double>())
            : "-";
    out += absl::StrFormat(
        "%-10s %5s  %-23s %-24s %-23s %6s %6s %6s %6s\n",
        row.value("name", "?"), std::to_string(row.value("n", int64_t{0})),
        Cell(row, "gold"), Cell(row, "reward"), Cell(row, "kl"), length,
        Number(row, "stop_frac", 3), Number(row, "distinct2", 3),
        Number(row, "reference_ppl", 1));
  }
  if (json.contains("measured") && json["measured"].is_object()) {
    for (const auto& [name, value] : json["measured"].items()) {
      if (value.is_number()) {
        out += absl::StrFormat("%-32s %.4f\n", name, value.get<double>());
      }
    }
  }
  return out;
}

}  // namespace cox
