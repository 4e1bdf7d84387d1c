#ifndef COX_CLI_BENCH_RPC_H_
#define COX_CLI_BENCH_RPC_H_

namespace cox {

// `cox bench rpc`: messages over gRPC (unary, stream), and the coordinator as
// a process of its own under simulated actors (rollout).
int BenchRpc(int argc, char** argv);

}  // namespace cox

#endif  // COX_CLI_BENCH_RPC_H_
