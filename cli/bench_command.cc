#include "cli/bench_command.h"

#include <cstdio>
#include <string>

#include "cli/bench_broadcast.h"
#include "cli/bench_ledger.h"
#include "cli/bench_rpc.h"
#include "cli/exec_sibling.h"
#include "lib/base/process.h"

namespace cox {
namespace {

struct Bench {
  const char* name;
  const char* help;
  int (*run)(int argc, char** argv);  // argv[0] = name; nullptr: in `binary`
  const char* binary;                 // beside this executable
};

constexpr Bench kBenches[] = {
    {"generate", "tokens per second of cached decoding", nullptr, "cox-bench"},
    {"train", "training steps of one stage in one process", nullptr,
     "cox-bench"},
    {"score", "sequences per second through a scalar head", nullptr,
     "cox-bench"},
    {"ceilings", "products, memory, loopback of this machine", nullptr,
     "cox-bench"},
    {"broadcast", "weights from a publisher to receivers", BenchBroadcast,
     nullptr},
    {"collective", "sums, gathers and broadcasts between ranks", nullptr,
     "cox-bench-collective"},
    {"ledger", "durable submissions per second, acknowledgement, recovery",
     BenchLedger, nullptr},
    {"rpc", "gRPC messages; a coordinator under simulated actors", BenchRpc,
     nullptr},
};

}  // namespace

int BenchCommand(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "--help";
  for (const Bench& bench : kBenches) {
    if (name == bench.name) {
      return bench.run != nullptr
                 ? bench.run(argc - 1, argv + 1)
                 : ExecSibling(bench.binary, {argv + 1, argv + argc});
    }
  }
  const bool help = name == "--help" || name == "-h";
  std::FILE* out = help ? stdout : stderr;
  if (!help) {
    std::fprintf(out, "cox bench: no benchmark '%s'\n", name.c_str());
  }
  std::fprintf(out, "cox bench NAME [--json] ...; NAME --help for its flags\n");
  for (const Bench& bench : kBenches) {
    std::fprintf(out, "  %-12s %s\n", bench.name, bench.help);
  }
  return help ? kExitDone : kExitUsage;
}

}  // namespace cox
