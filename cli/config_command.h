#ifndef COX_CLI_CONFIG_COMMAND_H_
#define COX_CLI_CONFIG_COMMAND_H_

#include <string>
#include <vector>

namespace cox {

// `cox config check|show FILE [a.b=c ...]`, `cox config explain [KEY]`.
// Prints to stdout, errors to stderr; returns the exit code.
int ConfigCheck(const std::string& file,
                const std::vector<std::string>& overrides);
int ConfigShow(const std::string& file,
               const std::vector<std::string>& overrides);
int ConfigExplain(const std::string& key);

}  // namespace cox

#endif  // COX_CLI_CONFIG_COMMAND_H_
