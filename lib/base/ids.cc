#include "lib/base/ids.h"

#include "absl/strings/str_cat.h"

namespace cox {

std::string PolicyVersion::ToString() const {
  return absl::StrCat("s", stage, "v", step);
}

std::string UnitId::ToString() const {
  return absl::StrCat("s", stage, ".", step, ".", index);
}

std::string TrajectoryId::ToString() const {
  return absl::StrCat(unit.ToString(), "/", prompt, ".", sample);
}

}  // namespace cox
