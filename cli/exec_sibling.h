#ifndef COX_CLI_EXEC_SIBLING_H_
#define COX_CLI_EXEC_SIBLING_H_

#include <string>
#include <vector>

namespace cox {

// Becomes `binary` of this executable's folder. Commands that need LibTorch
// are binaries of their own. Returns only when that cannot be started: says so
// and gives the exit code.
int ExecSibling(const std::string& binary,
                const std::vector<std::string>& arguments);

}  // namespace cox

#endif  // COX_CLI_EXEC_SIBLING_H_
