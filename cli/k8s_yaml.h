#ifndef COX_CLI_K8S_YAML_H_
#define COX_CLI_K8S_YAML_H_

// Kubernetes objects between YAML text and JSON values.

#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"
#include "nlohmann/json.hpp"

namespace cox {

using K8sObject = nlohmann::ordered_json;

// Every document of `text` that is not empty. Plain scalars become numbers,
// booleans and null as Kubernetes reads them (0440 is octal). INVALID_ARGUMENT
// with line:column within the document.
absl::StatusOr<std::vector<K8sObject>> ParseObjects(std::string_view text);

// Block style, "---" between documents; parses back to equal values.
std::string PrintObjects(const std::vector<K8sObject>& objects);

}  // namespace cox

#endif  // COX_CLI_K8S_YAML_H_
