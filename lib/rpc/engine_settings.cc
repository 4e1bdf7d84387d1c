#include "lib/rpc/engine_settings.h"

namespace cox {

EngineOptions EngineOptionsOf(const cox::v1::RunConfig& config) {
  EngineOptions options;
  options.device = config.roles().device();
  options.threads = config.roles().threads();
  options.dtype = config.numerics().dtype();
  options.recompute = config.numerics().recompute();
  return options;
}

}  // namespace cox
