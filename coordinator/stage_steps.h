#ifndef COX_COORDINATOR_STAGE_STEPS_H_
#define COX_COORDINATOR_STAGE_STEPS_H_

// How many steps a stage takes whose data may only come into being during the
// run: rm, rft, dpo and kto make whole passes over rows of comparisons.

#include <cstdint>
#include <string>

#include "coordinator/plan.h"
#include "cox/v1/run_config.pb.h"
#include "lib/base/fs.h"

namespace cox {

// Whether the stage's length follows from its rows.
bool CountsRows(StageKind kind);

// Whether the configuration names the stage's files, so that its length is
// known before the run; otherwise stage collect writes them.
bool HasOwnRows(const cox::v1::RunConfig& config, StageKind kind);

// epochs * ceil(rows / batch), with the rows of the stage's files or, when none
// are named, of stage collect. NOT_FOUND before they exist. REQUIRES:
// CountsRows(kind).
absl::StatusOr<int64_t> StepsOverRows(Fs& fs, const cox::v1::RunConfig& config,
                                      const std::string& run_dir,
                                      StageKind kind);

}  // namespace cox

#endif  // COX_COORDINATOR_STAGE_STEPS_H_
