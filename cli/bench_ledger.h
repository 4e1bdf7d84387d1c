#ifndef COX_CLI_BENCH_LEDGER_H_
#define COX_CLI_BENCH_LEDGER_H_

// cox bench ledger: the coordinator's core, group commit, segments and SQLite
// ledger in one process, without gRPC.

namespace cox {

int BenchLedger(int argc, char** argv);  // argv[0] = "ledger"

}  // namespace cox

#endif  // COX_CLI_BENCH_LEDGER_H_
