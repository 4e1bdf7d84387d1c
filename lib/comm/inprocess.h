#ifndef COX_LIB_COMM_INPROCESS_H_
#define COX_LIB_COMM_INPROCESS_H_

#include <memory>
#include <vector>

#include "lib/comm/collective.h"

namespace cox {

// Ranks as threads of one process. For tests and cox-ops.
std::vector<std::unique_ptr<Collective>> MakeInProcessGroup(
    int world_size, absl::Duration timeout = absl::Seconds(60));

}  // namespace cox

#endif  // COX_LIB_COMM_INPROCESS_H_
