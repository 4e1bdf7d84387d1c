// `cox bench ceilings`: what this machine reaches, to compare figures with.

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/bench_model.h"
#include "lib/base/thread.h"
#include "lib/model/api.h"
#include "lib/model/measure.h"

namespace cox {
namespace {

constexpr size_t kCopyBytes = size_t{1} << 27;
constexpr size_t kStreamBytes = size_t{1} << 28;

// Seconds that `threads` calls of `body` take together.
double Together(int threads, const std::function<void(int)>& body) {
  const double start = BenchSeconds();
  std::vector<Thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back("ceiling", [&body, t] { body(t); });
  }
  all.clear();
  return BenchSeconds() - start;
}

double MemcpyGbPerSecond(int threads) {
  const size_t each = kCopyBytes / static_cast<size_t>(threads);
  std::vector<std::string> from(static_cast<size_t>(threads)), to;
  for (std::string& block : from) block.assign(each, 'x');
  to = from;
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const double seconds = Together(threads, [&](int t) {
      const size_t k = static_cast<size_t>(t);
      std::memcpy(to[k].data(), from[k].data(), each);
    });
    best = std::max(best, static_cast<double>(kCopyBytes) / seconds * 1e-9);
  }
  return best;
}

// One connection: sends kStreamBytes through the loopback device.
bool StreamOnce() {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (listener < 0 || bind(listener, generic, sizeof(address)) != 0 ||
      listen(listener, 1) != 0 || getsockname(listener, generic, &size) != 0) {
    if (listener >= 0) close(listener);
    return false;
  }
  Thread sender("sender", [address] {
    const int out = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to = address;
    if (connect(out, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) {
      const std::string block(1 << 20, 'x');
      for (size_t sent = 0; sent < kStreamBytes;) {
        const ssize_t n = send(out, block.data(), block.size(), MSG_NOSIGNAL);
        if (n <= 0) break;
        sent += static_cast<size_t>(n);
      }
    }
    close(out);
  });
  const int in = accept(listener, nullptr, nullptr);
  std::string block(1 << 20, '\0');
  size_t received = 0;
  for (ssize_t n = 1; in >= 0 && n > 0;) {
    n = read(in, block.data(), block.size());
    received += static_cast<size_t>(std::max<ssize_t>(n, 0));
  }
  if (in >= 0) close(in);
  close(listener);
  return received >= kStreamBytes;
}

double LoopbackGbPerSecond(int threads) {
  const double seconds =
      Together(threads, [](int) { static_cast<void>(StreamOnce()); });
  return static_cast<double>(threads) * static_cast<double>(kStreamBytes) /
         seconds * 1e-9;
}

absl::Status Measure(const BenchModelFlags& flags, BenchReport& report) {
  std::vector<GemmShape> shapes = {{512, 1024, 1024}};
  if (!flags.common.model.empty() || !flags.config.empty()) {
    COX_ASSIGN_OR_RETURN(const BenchModel model,
                         LoadBenchModel(flags, HeadKind::kLanguageModel));
    const ModelConfig& c = model.config;
    report.Integer("params", c.ParameterCount());
    shapes = {{512, c.hidden, c.heads * c.head_dim},
              {512, c.hidden, c.intermediate},
              {512, c.intermediate, c.hidden},
              {512, c.hidden, c.vocab_size}};
  }
  const int all = BenchThreads(flags.common);
  for (const int threads : {1, all}) {
    const std::string suffix = threads == 1 ? "_1" : "_all";
    for (const char* dtype : {"fp32", "bf16"}) {
      EngineOptions options = BenchEngineOptions(flags, threads);
      options.dtype = dtype;
      COX_RETURN_IF_ERROR(InitTorch(options).status());
      double flop = 0, seconds = 0;
      for (const GemmShape& shape : shapes) {
        COX_ASSIGN_OR_RETURN(const double rate,
                             GemmGflops(options, shape, 0.3));
        const double work = 2.0 * static_cast<double>(shape.m) *
                            static_cast<double>(shape.k) *
                            static_cast<double>(shape.n);
        flop += work;
        seconds += work / rate;
      }
      report.Number(absl::StrCat("gemm_gflop_s_", dtype, suffix),
                    flop / seconds);
    }
    const EngineOptions options = BenchEngineOptions(flags, threads);
    COX_ASSIGN_OR_RETURN(const double read,
                         ReadGbPerSecond(options, int64_t{1} << 29, 0.5));
    report.Number("dram_read_gb_s" + suffix, read);
    report.Number("memcpy_gb_s" + suffix, MemcpyGbPerSecond(threads));
    report.Number("loopback_tcp_gb_s" + suffix, LoopbackGbPerSecond(threads));
    if (all == 1) break;
  }
  return absl::OkStatus();
}

}  // namespace

int BenchCeilings(int argc, char** argv) {
  BenchModelFlags flags;
  CLI::App app{
      "What this machine reaches: products in the model's shapes, "
      "memory, loopback; for one thread and for all",
      "cox bench ceilings"};
  AddBenchModelFlags(app, flags);
  int exit_code = 0;
  if (!StartModelBench(app, argc, argv, flags, &exit_code)) return exit_code;
  BenchReport report("ceilings", flags.common);
  const BenchMeter meter;
  const absl::Status measured = Measure(flags, report);
  if (!measured.ok()) return BenchFailed("ceilings", measured);
  report.AddRun(meter.Stop());
  return report.Print(/*ok=*/true);
}

}  // namespace cox
