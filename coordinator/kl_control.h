#ifndef COX_COORDINATOR_KL_CONTROL_H_
#define COX_COORDINATOR_KL_CONTROL_H_

// The coefficients of the KL penalty that an operator set during a run. The
// command's text in the ledger is the record: "kl_coef 4=0.02" with the
// stage's number, and the row's effective step.

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/ledger.h"

namespace cox {

std::string KlCommand(int32_t stage, double kl_coef);

class KlCoefficients {
 public:
  KlCoefficients() = default;
  explicit KlCoefficients(const std::vector<ControlRow>& rows);

  // Ignores rows of other commands. Of two for one step the later stays.
  void Add(const ControlRow& row);
  // What the learners' beta becomes when `step` begins; nothing = it stays as
  // it is.
  std::optional<double> At(int32_t stage, int64_t step) const;

 private:
  std::map<std::pair<int32_t, int64_t>, double> values_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_KL_CONTROL_H_
