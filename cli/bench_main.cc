// cox-bench: the benchmarks that need LibTorch; `cox bench` starts it.

#include <cstdio>
#include <string>

#include "cli/bench_model.h"
#include "lib/base/log.h"
#include "lib/base/process.h"

namespace {

struct Bench {
  const char* name;
  int (*run)(int argc, char** argv);
};
constexpr Bench kBenches[] = {{"generate", cox::BenchGenerate},
                              {"train", cox::BenchTrain},
                              {"score", cox::BenchScore},
                              {"ceilings", cox::BenchCeilings}};

}  // namespace

int main(int argc, char** argv) {
  cox::InitLog("bench");
  cox::InitProcess(/*die_with_parent=*/false);
  const std::string name = argc > 1 ? argv[1] : "";
  for (const Bench& bench : kBenches) {
    if (name == bench.name) return bench.run(argc - 1, argv + 1);
  }
  std::fprintf(stderr, "usage: cox-bench generate|train|score|ceilings ...\n");
  return cox::kExitUsage;
}
