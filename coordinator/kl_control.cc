#include "coordinator/kl_control.h"

#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace cox {
namespace {

constexpr std::string_view kKlCoef = "kl_coef ";

}  // namespace

std::string KlCommand(int32_t stage, double kl_coef) {
  // 17 digits: the same number comes back.
  return absl::StrCat(std::string(kKlCoef), stage, "=",
                      absl::StrFormat("%.17g", kl_coef));
}

KlCoefficients::KlCoefficients(const std::vector<ControlRow>& rows) {
  for (const ControlRow& row : rows) Add(row);
}

void KlCoefficients::Add(const ControlRow& row) {
  const size_t equals = row.command.find('=');
  if (!row.command.starts_with(kKlCoef) || equals == std::string::npos) {
    return;
  }
  int32_t stage = 0;
  double value = 0;
  if (absl::SimpleAtoi(
          row.command.substr(kKlCoef.size(), equals - kKlCoef.size()),
          &stage) &&
      absl::SimpleAtod(row.command.substr(equals + 1), &value)) {
    values_[{stage, row.effective_step}] = value;
  }
}

std::optional<double> KlCoefficients::At(int32_t stage, int64_t step) const {
  const auto found = values_.find({stage, step});
  return found == values_.end() ? std::nullopt
                                : std::optional<double>(found->second);
}

}  // namespace cox
