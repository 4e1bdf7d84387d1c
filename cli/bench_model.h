#ifndef COX_CLI_BENCH_MODEL_H_
#define COX_CLI_BENCH_MODEL_H_

// What the benchmarks of cox-bench share: models, token files, and the least
// work that a pass can be done with (docs/benchmarks.md).

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/bench_report.h"
#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "lib/engine/engine_options.h"

namespace cox {

// One function per benchmark; argv[0] = its name. The exit code.
int BenchGenerate(int argc, char** argv);
int BenchTrain(int argc, char** argv);
int BenchScore(int argc, char** argv);
int BenchCeilings(int argc, char** argv);

struct BenchModelFlags {
  BenchFlags common;
  std::string config;  // config.json whose random weights replace --model
  bool recompute = false;
};
void AddBenchModelFlags(CLI::App& app, BenchModelFlags& flags);
// Parses, pins, starts LibTorch. False and the exit code when it is not to
// go on (help, wrong usage, no such device).
bool StartModelBench(CLI::App& app, int argc, char** argv,
                     const BenchModelFlags& flags, int* exit_code);

int BenchThreads(const BenchFlags& flags);
EngineOptions BenchEngineOptions(const BenchModelFlags& flags, int threads);

struct BenchModel {
  ModelConfig config;
  std::shared_ptr<const Snapshot> snapshot;  // float32
};
// --model's weights, or random ones of --config (seed 1). With `head` other
// than the folder's, a new head of seed 1. INVALID_ARGUMENT for neither flag or
// for an encoder-decoder.
absl::StatusOr<BenchModel> LoadBenchModel(const BenchModelFlags& flags,
                                          HeadKind head);
absl::StatusOr<BenchModel> LoadBenchModel(const std::string& folder,
                                          const std::string& config,
                                          HeadKind head);

// The token ids under `key` of each line of a JSONL file.
absl::StatusOr<std::vector<std::vector<int32_t>>> ReadIds(
    const std::string& path, const char* key);
// One integer a line.
absl::StatusOr<std::vector<int64_t>> ReadIntegers(const std::string& path);
// `rows` sequences of `length` random ids below `vocab`.
std::vector<std::vector<int32_t>> RandomIds(int64_t rows, int64_t length,
                                            int64_t vocab);

double BenchSeconds();  // a clock

// Bytes that must be read and operations that must be done.
struct BenchWork {
  double bytes = 0;
  double flop = 0;
  void Add(const BenchWork& other) {
    bytes += other.bytes;
    flop += other.flop;
  }
};
// By formula, of a decoder with P parameters in the matrices of its blocks and
// a head of H:
//   forward of N tokens that attend to A (token, position) pairs in total:
//     flop  = 2 (P + H) N + 4 layers heads head_dim A
//   decode step of N rows, one new token each:
//     bytes = P w + H h + 2 layers kv_heads head_dim c A
// where w, h, c are the bytes of an element of blocks, head and cache.
BenchWork ForwardWork(const ModelConfig& config, double tokens, double pairs);
BenchWork DecodeWork(const ModelConfig& config, const EngineOptions& options,
                     double rows, double pairs);
// Parameters in matrix products, the head included.
int64_t MatrixParameters(const ModelConfig& config);

// What this machine reaches; measured for a fraction of a second each.
struct MachineCeilings {
  double gemm_gflop_s = 0;
  double read_gb_s = 0;
  double Seconds(const BenchWork& work) const;
};
absl::StatusOr<MachineCeilings> MeasureCeilings(const ModelConfig& config,
                                                const EngineOptions& options,
                                                int64_t rows);
void ReportCeilings(const MachineCeilings& ceilings, BenchReport& report);

// Prints `status` and gives the exit code of a failed benchmark.
int BenchFailed(const char* name, const absl::Status& status);

}  // namespace cox

#endif  // COX_CLI_BENCH_MODEL_H_
