#ifndef COX_LIB_RPC_ENGINE_SETTINGS_H_
#define COX_LIB_RPC_ENGINE_SETTINGS_H_

#include "cox/v1/run_config.pb.h"
#include "lib/engine/engine_options.h"

namespace cox {

// How the engines of a run compute.
EngineOptions EngineOptionsOf(const cox::v1::RunConfig& config);

}  // namespace cox

#endif  // COX_LIB_RPC_ENGINE_SETTINGS_H_
