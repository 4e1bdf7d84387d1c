#ifndef COX_LIB_CONFIG_CHECK_ALGORITHMS_H_
#define COX_LIB_CONFIG_CHECK_ALGORITHMS_H_

// Rules between the settings of the training algorithms: stages rft, dpo and
// kto, and the options of ppo that belong together. Part of CheckConfig.

#include <vector>

#include "lib/config/config.h"

namespace cox::config {

// REQUIRES: ranges and choices are valid.
std::vector<ConfigIssue> CheckAlgorithms(const cox::v1::RunConfig& config);

}  // namespace cox::config

#endif  // COX_LIB_CONFIG_CHECK_ALGORITHMS_H_
