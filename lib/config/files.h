#ifndef COX_LIB_CONFIG_FILES_H_
#define COX_LIB_CONFIG_FILES_H_

#include <vector>

#include "lib/base/fs.h"
#include "lib/config/config.h"

namespace cox::config {

// Paths that a stage of the run will read and that do not exist. Files of
// stages that do not run, and of kinds that are not chosen, are not looked at.
std::vector<ConfigIssue> CheckFiles(const cox::v1::RunConfig& config, Fs& fs);

}  // namespace cox::config

#endif  // COX_LIB_CONFIG_FILES_H_
