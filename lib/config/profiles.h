#ifndef COX_LIB_CONFIG_PROFILES_H_
#define COX_LIB_CONFIG_PROFILES_H_

// ppo.profile: the settings of a published recipe (docs/algorithms.md §2).

#include <string_view>

namespace cox::config {

// Settings of `profile` as YAML of a whole run; "" for "none" and for names
// that are no choice of ppo.profile.
std::string_view ProfileYaml(std::string_view profile);

}  // namespace cox::config

#endif  // COX_LIB_CONFIG_PROFILES_H_
