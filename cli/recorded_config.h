#ifndef COX_CLI_RECORDED_CONFIG_H_
#define COX_CLI_RECORDED_CONFIG_H_

#include "coordinator/ledger_reader.h"
#include "lib/config/config.h"

namespace cox {

// The configuration that the ledger recorded. Files need not exist.
absl::StatusOr<cox::v1::RunConfig> RecordedConfig(const RecordedRun& run);

}  // namespace cox

#endif  // COX_CLI_RECORDED_CONFIG_H_
