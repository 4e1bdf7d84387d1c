#ifndef COX_CLI_KUBECTL_H_
#define COX_CLI_KUBECTL_H_

// kubectl as a child process ($COX_KUBECTL names another one).

#include <string>
#include <vector>

namespace cox {

std::string KubectlName();

// Runs kubectl with `input` on its stdin. `output` null = ours is inherited.
// The exit code, or 127 when it cannot be started.
int RunKubectl(const std::vector<std::string>& arguments,
               const std::string& input, std::string* output);

// Whether a cluster answers within five seconds.
bool ClusterAnswers();

}  // namespace cox

#endif  // COX_CLI_KUBECTL_H_
