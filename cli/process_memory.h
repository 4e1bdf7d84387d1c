#ifndef COX_CLI_PROCESS_MEMORY_H_
#define COX_CLI_PROCESS_MEMORY_H_

namespace cox {

// Bytes of this process.
struct ProcessMemory {
  double peak_private = 0;  // largest so far, pages of files not counted
  double libraries = 0;     // resident now of shared libraries
  double program = 0;       // resident now of the binary's own file
};
ProcessMemory OwnMemory();

}  // namespace cox

#endif  // COX_CLI_PROCESS_MEMORY_H_
