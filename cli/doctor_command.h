#ifndef COX_CLI_DOCTOR_COMMAND_H_
#define COX_CLI_DOCTOR_COMMAND_H_

#include <string>

namespace cox {

// `cox doctor [--device cuda]`: what this machine has and lacks, one line each.
// Exit code 0 when a run can start on `device` (cpu, cuda), 1 otherwise.
int Doctor(const std::string& device);

}  // namespace cox

#endif  // COX_CLI_DOCTOR_COMMAND_H_
