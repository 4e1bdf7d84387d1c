#ifndef COX_CLI_BENCH_COMMAND_H_
#define COX_CLI_BENCH_COMMAND_H_

// cox bench NAME: the benchmarks, one row each in the table of
// bench_command.cc. What needs LibTorch is a binary of its own beside this one.

namespace cox {

// argv[0] = "bench". Returns the exit code: 0 only if every self-check held.
int BenchCommand(int argc, char** argv);

}  // namespace cox

#endif  // COX_CLI_BENCH_COMMAND_H_
