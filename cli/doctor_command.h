#ifndef COX_CLI_DOCTOR_COMMAND_H_
#define COX_CLI_DOCTOR_COMMAND_H_

namespace cox {

// `cox doctor`: what this machine has and lacks, one line each. Exit code 0
// when a run can start on the CPU, 1 otherwise.
int Doctor();

}  // namespace cox

#endif  // COX_CLI_DOCTOR_COMMAND_H_
