#ifndef COX_CLI_BENCH_BROADCAST_H_
#define COX_CLI_BENCH_BROADCAST_H_

// cox bench broadcast: one version of weights from its publisher to receivers
// in processes of their own, over the production server and fetcher.

namespace cox {

int BenchBroadcast(int argc, char** argv);  // argv[0] = "broadcast"

}  // namespace cox

#endif  // COX_CLI_BENCH_BROADCAST_H_
