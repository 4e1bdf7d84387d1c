#ifndef COX_LIB_CONFIG_PROFILES_H_
#define COX_LIB_CONFIG_PROFILES_H_

// Settings that lie below those of the file: of ppo.profile, a published recipe
// (docs/algorithms.md §2), and of model.type, where a family has its own.

#include <string_view>

namespace cox::config {

// Settings of `profile` as YAML of a whole run; "" for "none" and for names
// that are no choice of ppo.profile.
std::string_view ProfileYaml(std::string_view profile);

// The same for a choice of model.type; "" for most.
std::string_view FamilyYaml(std::string_view type);

}  // namespace cox::config

#endif  // COX_LIB_CONFIG_PROFILES_H_
