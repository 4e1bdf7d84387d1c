#include "cli/bench_broadcast.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "cli/bench_report.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/base/process.h"
#include "lib/base/rng.h"
#include "lib/rpc/server.h"
#include "lib/rpc/weight_fetcher.h"
#include "lib/rpc/weight_server.h"
#include "lib/weights/model_folder.h"

namespace cox {
namespace {

struct BroadcastFlags {
  BenchFlags common;
  int64_t bytes = 256'000'000;
  std::vector<int> receivers = {1, 2, 4};
};

double CpuSeconds() {
  rusage use = {};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

std::string WholeHash(const Snapshot& snapshot) {
  const auto bytes = snapshot.arena->bytes();
  std::string hex;
  for (const char c :
       Xxh3_128({reinterpret_cast<const char*>(bytes.data()), bytes.size()})) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x",
                  static_cast<unsigned>(static_cast<unsigned char>(c)));
    hex += digits;
  }
  return hex;
}

// The receiving process: reads "address content_hash manifest_path" lines,
// answers "ok fetched_s swap_us cpu_s xxh3 content_hash" when it could sample
// from the version, or "error TEXT".
int Receive() {
  InitProcess(/*die_with_parent=*/true);
  std::shared_ptr<const Snapshot> current;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string address, hash, path;
    words >> address >> hash >> path;
    VersionSource source;
    source.model = "policy";
    source.content_hash = hash;
    source.addresses = {address};
    const double cpu = CpuSeconds();
    const MonoTime start = Clock::Real().Now();
    absl::Status status;
    if (auto text = Fs::Real().ReadAll(path); text.ok()) {
      source.manifest = *std::move(text);
    } else {
      status = text.status();
    }
    std::shared_ptr<const Snapshot> next;
    if (status.ok()) {
      FetchOptions options;
      options.caller.run_id = "bench";
      options.patience = absl::Seconds(10);
      auto fetched = FetchSnapshot(source, options);
      status = fetched.status();
      if (fetched.ok()) next = *std::move(fetched);
    }
    if (!status.ok()) {
      std::cout << "error " << status.ToString() << std::endl;
      continue;
    }
    const MonoTime fetched = Clock::Real().Now();
    current.swap(next);  // between two units of an actor
    const MonoTime swapped = Clock::Real().Now();
    const double used = CpuSeconds() - cpu;
    std::cout << "ok " << absl::ToDoubleSeconds(fetched - start) << ' '
              << absl::ToDoubleMicroseconds(swapped - fetched) << ' ' << used
              << ' ' << current->content_hash << std::endl;
    next = nullptr;
    std::cout << WholeHash(*current) << std::endl;
  }
  return kExitDone;
}

class Receiver {
 public:
  // Starts this executable again with --receive.
  bool Start() {
    int down[2], up[2];
    if (pipe2(down, O_CLOEXEC) != 0 || pipe2(up, O_CLOEXEC) != 0) return false;
    pid_ = fork();
    if (pid_ < 0) return false;
    if (pid_ == 0) {
      dup2(down[0], 0);
      dup2(up[1], 1);
      execl("/proc/self/exe", "cox", "bench", "broadcast", "--receive",
            static_cast<char*>(nullptr));
      _exit(127);
    }
    close(down[0]);
    close(up[1]);
    to_ = fdopen(down[1], "w");
    from_ = fdopen(up[0], "r");
    return to_ != nullptr && from_ != nullptr;
  }
  ~Receiver() {
    if (to_ != nullptr) std::fclose(to_);  // its end of input: it leaves
    if (from_ != nullptr) std::fclose(from_);
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
  }
  Receiver() = default;
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;

  void Send(const std::string& line) {
    std::fprintf(to_, "%s\n", line.c_str());
    std::fflush(to_);
  }
  std::string Line() {
    std::string line;
    for (int c = std::fgetc(from_); c != EOF && c != '\n';
         c = std::fgetc(from_)) {
      line.push_back(static_cast<char>(c));
    }
    return line;
  }

 private:
  pid_t pid_ = -1;
  std::FILE* to_ = nullptr;
  std::FILE* from_ = nullptr;
};

// What is broadcast: `bytes` of float32 in tensors of 16 MB, or tensors of the
// shapes of a model folder.
absl::StatusOr<Manifest> LayoutFor(const BroadcastFlags& flags) {
  if (!flags.common.model.empty()) {
    COX_ASSIGN_OR_RETURN(const ModelFolder folder,
                         ReadModelFolder(Fs::Real(), flags.common.model));
    std::vector<std::pair<std::string, std::vector<int64_t>>> tensors;
    for (const auto& [name, tensor] : folder.tensors) {
      tensors.push_back({name, tensor.shape});
    }
    return LayOut("policy", folder.config_json, DType::kF32, tensors);
  }
  constexpr int64_t kTensor = 4'000'000;
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors;
  for (int64_t left = flags.bytes / 4; left > 0; left -= kTensor) {
    tensors.push_back(
        {absl::StrCat("t", tensors.size()), {std::min(left, kTensor)}});
  }
  return LayOut("policy", "{}", DType::kF32, tensors);
}

struct Figures {
  std::vector<double> wall, hash, per_receiver, total, verified, swap, cpu;
  bool identical = true;
};

// New weights, then publish until everybody holds them.
absl::Status OneRun(const Manifest& layout, uint64_t seed,
                    const std::string& manifest_path, SnapshotStore* store,
                    const RpcServer& server,
                    std::vector<std::unique_ptr<Receiver>>& receivers,
                    Figures* figures, BenchUse* use) {
  auto arena = std::make_shared<Arena>(layout.arena_bytes);
  // Any bytes that differ from run to run; they are never computed with.
  CounterRng rng(seed, "bench.broadcast");
  const uint64_t key = rng.NextUint64();
  auto* eights = reinterpret_cast<uint64_t*>(arena->bytes().data());
  for (uint64_t i = 0; i < layout.arena_bytes / 8; ++i) {
    eights[i] = (i + key) * 0x9e3779b97f4a7c15U;
  }
  const BenchMeter meter;
  const MonoTime start = Clock::Real().Now();
  COX_ASSIGN_OR_RETURN(const auto snapshot, MakeSnapshot(layout, arena));
  const MonoTime hashed = Clock::Real().Now();
  store->Put(snapshot);
  {
    std::ofstream manifest(manifest_path);
    manifest << snapshot->manifest.CanonicalText();
  }
  for (auto& receiver : receivers) {
    receiver->Send(absl::StrCat(server.address(), " ", snapshot->content_hash,
                                " ", manifest_path));
  }
  std::vector<std::string> answers;
  for (auto& receiver : receivers) answers.push_back(receiver->Line());
  const double wall = absl::ToDoubleSeconds(Clock::Real().Now() - start);
  *use = meter.Stop();
  double slowest = 0, swap = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    std::istringstream words(answers[i]);
    std::string ok, hash;
    double fetched = 0, swapped = 0, cpu = 0;
    words >> ok >> fetched >> swapped >> cpu >> hash;
    if (ok != "ok") return absl::InternalError(answers[i]);
    figures->identical = figures->identical && hash == snapshot->content_hash &&
                         receivers[i]->Line() == WholeHash(*snapshot);
    slowest = std::max(slowest, fetched);
    swap = std::max(swap, swapped);
    use->cpu_s += cpu;
  }
  const double gb = static_cast<double>(layout.arena_bytes) / 1e9;
  figures->wall.push_back(wall);
  figures->hash.push_back(absl::ToDoubleSeconds(hashed - start));
  figures->verified.push_back(slowest);
  figures->swap.push_back(swap);
  figures->per_receiver.push_back(gb / wall);
  figures->total.push_back(gb * static_cast<double>(receivers.size()) / wall);
  store->Keep({});
  return absl::OkStatus();
}

absl::Status Measure(const BroadcastFlags& flags, int count,
                     BenchReport& report, bool* ok) {
  COX_ASSIGN_OR_RETURN(const Manifest layout, LayoutFor(flags));
  SnapshotStore store;
  WeightServiceImpl service(
      &store,
      {.run_id = [] { return std::string("bench"); }, .on_chunk = nullptr});
  COX_ASSIGN_OR_RETURN(const auto server,
                       RpcServer::Start({.services = {&service}}));
  std::vector<std::unique_ptr<Receiver>> receivers;
  for (int i = 0; i < count; ++i) {
    receivers.push_back(std::make_unique<Receiver>());
    if (!receivers.back()->Start()) {
      return absl::InternalError("cannot start a receiver");
    }
  }
  const std::string path = absl::StrCat("/tmp/cox-bench-broadcast-", getpid());
  Figures warm, figures;
  BenchUse use;
  absl::Status status;
  uint64_t before = 0;
  for (int run = -flags.common.warmup; status.ok() && run < flags.common.runs;
       ++run) {
    if (run == 0) before = service.bytes_sent();
    WaitIdle(flags.common.wait_idle_s);
    status =
        OneRun(layout, flags.common.seed + static_cast<uint64_t>(run + 1), path,
               &store, *server, receivers, run < 0 ? &warm : &figures, &use);
    if (run >= 0 && status.ok()) report.AddRun(use);
  }
  static_cast<void>(Fs::Real().RemoveAll(path));
  COX_RETURN_IF_ERROR(status);
  const auto sent = static_cast<int64_t>((service.bytes_sent() - before) /
                                         std::max(1, flags.common.runs));
  report.Text("transport", "grpc");
  report.Text("mode", "full");
  report.Integer("receivers", count);
  report.Integer("bytes", static_cast<int64_t>(layout.arena_bytes));
  report.Integer("wire_bytes", sent);    // without gRPC's own headers
  report.Integer("egress_bytes", sent);  // nobody relays here
  report.Spread("publish_s", figures.hash);
  report.Spread("fetch_s", figures.verified);
  report.Null("verify_s");  // beside the transfer, chunk by chunk
  report.Spread("swap_us", figures.swap);
  report.Spread("gb_s_per_receiver", figures.per_receiver);
  report.Spread("gb_s_total", figures.total);
  report.Null("link_share");
  report.Flag("bit_identical", figures.identical);
  *ok = *ok && figures.identical;
  return absl::OkStatus();
}

}  // namespace

int BenchBroadcast(int argc, char** argv) {
  CLI::App app(
      "weights from a publisher to receivers in processes of their own; the "
      "clock runs from the publisher's hash to the last verified copy");
  BroadcastFlags flags;
  AddBenchFlags(app, flags.common);
  bool receive = false;
  std::string transport = "grpc", mode = "full";
  app.add_option("--bytes", flags.bytes, "size of the weights")
      ->check(CLI::Range(int64_t{4}, int64_t{1} << 36));
  app.add_option("--receivers", flags.receivers, "1,2,4: one measurement each")
      ->delimiter(',')
      ->check(CLI::Range(1, 64));
  app.add_option("--transport", transport, "how they travel")
      ->check(CLI::IsMember({"grpc"}));
  app.add_option("--mode", mode, "whole versions")
      ->check(CLI::IsMember({"full"}));
  app.add_flag("--receive", receive)->group("");  // the child's side
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kExitDone : kExitUsage;
  }
  if (receive) return Receive();
  if (!ApplyBenchFlags(flags.common)) return kExitUsage;
  int code = kExitDone;
  for (const int count : flags.receivers) {
    BenchReport report("broadcast", flags.common);
    bool ok = true;
    const absl::Status status = Measure(flags, count, report, &ok);
    if (!status.ok()) {
      std::fprintf(stderr, "bench broadcast: %s\n", status.ToString().c_str());
      return ExitCodeFor(status);
    }
    code = std::max(code, report.Print(ok));
  }
  return code;
}

}  // namespace cox
