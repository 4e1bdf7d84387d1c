// cox-bench-collective: `cox bench collective`. A binary of its own because
// Gloo needs LibTorch. Ranks are forked processes; this one only starts and
// reads them, so that none inherits a LibTorch that already runs.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "cli/bench_report.h"
#include "lib/base/clock.h"
#include "lib/base/hash.h"
#include "lib/base/process.h"
#include "lib/comm/collective.h"
#include "lib/comm/id_store.h"
#include "lib/comm/nccl.h"

namespace cox {
namespace {

struct CollectiveBenchFlags {
  BenchFlags common;
  std::string op = "all_reduce";
  std::string backend = "gloo";
  int64_t bytes = 64 << 20;
  std::vector<int> ranks = {1, 2, 4};
  int iterations = 0;  // 0: by size
  bool tree_order = true;
  bool launched = false;
  double timeout_s = 60;
};

// What a rank says after each run, and once more after the check.
struct RankReport {
  double seconds = 0;  // of one operation
  double cpu_s = 0;
  int64_t rss_bytes = 0;
  bool identical = false;  // all ranks' results; last report only
  int code = 0;            // absl::StatusCode
  char error[600] = {};
};

double CpuSeconds() {
  rusage use = {};
  getrusage(RUSAGE_SELF, &use);
  return absl::ToDoubleSeconds(absl::DurationFromTimeval(use.ru_utime) +
                               absl::DurationFromTimeval(use.ru_stime));
}

int64_t RssBytes() {
  rusage use = {};
  getrusage(RUSAGE_SELF, &use);
  return int64_t{use.ru_maxrss} * 1024;
}

// Whole numbers, so that the sum is known and exact in any order.
float ValueOf(int rank, size_t i) {
  return static_cast<float>((i % 1021) * static_cast<size_t>(rank + 1) % 509);
}

// An operation on one rank's buffers: host spans, or device memory.
class Subject {
 public:
  Subject(const CollectiveBenchFlags& flags, Collective* comm,
          NcclCollective* device)
      : op_(flags.op), comm_(comm), device_(device) {
    world_ = static_cast<size_t>(comm->world_size());
    // bytes = the whole: all ranks' blocks of a gather or scatter.
    block_ = static_cast<size_t>(flags.bytes) / sizeof(float) / world_;
    in_.resize(block_ * world_);
    out_.resize(block_ * world_);
  }

  absl::Status Prepare() {
    for (size_t i = 0; i < in_.size(); ++i) {
      in_[i] = ValueOf(comm_->rank(), i);
    }
    if (device_ == nullptr) return absl::OkStatus();
    const CudaApi& cuda = device_->cuda();
    COX_RETURN_IF_ERROR(
        CudaStatus(cuda, "set device", cuda.set_device(device_->device())));
    for (void** memory : {&device_in_, &device_out_}) {
      COX_RETURN_IF_ERROR(
          CudaStatus(cuda, "device memory", cuda.malloc(memory, Bytes())));
    }
    COX_RETURN_IF_ERROR(CudaStatus(cuda, "page-locked memory",
                                   cuda.malloc_host(&pinned_, Bytes())));
    return CudaStatus(cuda, "stream",
                      cuda.stream_create(&stream_, kCudaStreamNonBlocking));
  }

  // Puts the operands where Run() finds them; not timed.
  absl::Status Reset() {
    const bool in_place = op_ == "all_reduce" || op_ == "broadcast";
    if (device_ == nullptr) {
      if (in_place) out_ = in_;
      return absl::OkStatus();
    }
    std::memcpy(pinned_, in_.data(), Bytes());
    const CudaApi& cuda = device_->cuda();
    COX_RETURN_IF_ERROR(CudaStatus(
        cuda, "copy",
        cuda.memcpy_async(in_place ? device_out_ : device_in_, pinned_, Bytes(),
                          CudaCopy::kHostToDevice, stream_)));
    return CudaStatus(cuda, "copy", cuda.stream_synchronize(stream_));
  }

  absl::Status Run() {
    if (device_ != nullptr) return RunOnDevice();
    if (op_ == "all_reduce") return comm_->AllReduceSum(std::span<float>(out_));
    if (op_ == "reduce_scatter") {
      return comm_->ReduceScatterSum(in_, std::span(out_).first(block_));
    }
    if (op_ == "all_gather") {
      return comm_->AllGather(std::as_bytes(std::span(in_).first(block_)),
                              std::as_writable_bytes(std::span(out_)));
    }
    return comm_->Broadcast(std::as_writable_bytes(std::span(out_)), 0);
  }

  // Of the last Run() after a Reset(). DATA_LOSS: a value is wrong. The hash
  // is that of the whole result, so equal on all ranks.
  absl::StatusOr<std::string> Check() {
    if (device_ != nullptr) {
      const CudaApi& cuda = device_->cuda();
      COX_RETURN_IF_ERROR(
          CudaStatus(cuda, "copy",
                     cuda.memcpy_async(pinned_, device_out_, Bytes(),
                                       CudaCopy::kDeviceToHost, stream_)));
      COX_RETURN_IF_ERROR(
          CudaStatus(cuda, "copy", cuda.stream_synchronize(stream_)));
      std::memcpy(out_.data(), pinned_, Bytes());
    }
    if (op_ == "reduce_scatter") {
      const std::vector<float> mine(
          out_.begin(), out_.begin() + static_cast<std::ptrdiff_t>(block_));
      COX_RETURN_IF_ERROR(
          comm_->AllGather(std::as_bytes(std::span(mine)),
                           std::as_writable_bytes(std::span(out_))));
    }
    for (size_t i = 0; i < out_.size(); ++i) {
      if (out_[i] == Expected(i)) continue;
      return absl::DataLossError(absl::StrCat(
          "element ", i, ": expected ", Expected(i), ", found ", out_[i]));
    }
    return Sha256Hex(std::as_bytes(std::span(out_)));
  }

 private:
  size_t Bytes() const { return in_.size() * sizeof(float); }

  float Expected(size_t i) const {
    if (op_ == "broadcast") return ValueOf(0, i);
    if (op_ == "all_gather") {
      return ValueOf(static_cast<int>(i / block_), i % block_);
    }
    float sum = 0;
    for (size_t rank = 0; rank < world_; ++rank) {
      sum += ValueOf(static_cast<int>(rank), i);
    }
    return sum;
  }

  absl::Status RunOnDevice() {
    NcclCall call;
    call.in = device_in_;
    call.out = device_out_;
    call.count = in_.size();
    call.producer = stream_;
    if (op_ == "reduce_scatter") {
      call.kind = NcclCall::Kind::kReduceScatterSum;
      call.count = block_;
    } else if (op_ == "all_gather") {
      call.kind = NcclCall::Kind::kAllGather;
      call.count = block_;
    } else if (op_ == "broadcast") {
      call.kind = NcclCall::Kind::kBroadcast;
    }
    COX_ASSIGN_OR_RETURN(const int64_t ticket, device_->Start(call));
    return device_->Wait(ticket);
  }

  const std::string op_;
  Collective* comm_;
  NcclCollective* device_;
  size_t world_ = 1;
  size_t block_ = 0;  // elements
  std::vector<float> in_;
  std::vector<float> out_;
  void* device_in_ = nullptr;
  void* device_out_ = nullptr;
  void* pinned_ = nullptr;
  CudaStream stream_ = nullptr;
};

struct Place {
  int rank = 0;
  int world = 1;
  int listen_fd = -1;
  int port = 0;
  std::string host = "127.0.0.1";  // of rank 0
};

// Around the runs of a rank; false ends it.
struct RunHooks {
  std::function<bool()> before;
  std::function<bool(const RankReport&)> after;
};

absl::StatusOr<std::unique_ptr<NcclCollective>> MeetNccl(
    const CollectiveBenchFlags& flags, const Place& place) {
  std::string text;
  if (place.rank == 0) {
    COX_ASSIGN_OR_RETURN(const NcclUniqueId id, NewNcclId());
    text = NcclIdText(id);
  }
  IdStoreOptions store;
  store.host = place.host;
  store.port = place.port;
  store.listen_fd = place.rank == 0 ? place.listen_fd : -1;
  store.rank = place.rank;
  store.world_size = place.world;
  store.group = "bench";
  store.timeout = absl::Seconds(flags.timeout_s);
  COX_ASSIGN_OR_RETURN(text, ExchangeId(store, text));
  NcclOptions options;
  COX_ASSIGN_OR_RETURN(options.id, ParseNcclId(text));
  options.rank = place.rank;
  options.world_size = place.world;
  options.timeout = absl::Seconds(flags.timeout_s);
  options.tree_order = flags.tree_order;
  return MakeNccl(options);
}

absl::StatusOr<std::unique_ptr<Collective>> MeetGloo(
    const CollectiveBenchFlags& flags, const Place& place) {
  if (place.world == 1) return MakeSingleRank();
  GlooOptions options;
  options.port = place.port;
  options.listen_fd = place.rank == 0 ? place.listen_fd : -1;
  options.rank = place.rank;
  options.world_size = place.world;
  options.prefix = "bench";
  options.timeout = absl::Seconds(flags.timeout_s);
  return MakeGloo(options);
}

int IterationsOf(const CollectiveBenchFlags& flags) {
  if (flags.iterations > 0) return flags.iterations;
  return flags.bytes <= (1 << 20) ? 50 : 3;
}

absl::Status RunRank(const CollectiveBenchFlags& flags, const Place& place,
                     const RunHooks& hooks, RankReport* last) {
  std::unique_ptr<Collective> comm;
  NcclCollective* device = nullptr;
  if (flags.backend == "nccl") {
    COX_ASSIGN_OR_RETURN(std::unique_ptr<NcclCollective> nccl,
                         MeetNccl(flags, place));
    if (flags.common.device == "cuda") device = nccl.get();
    comm = std::move(nccl);
  } else {
    COX_ASSIGN_OR_RETURN(comm, MeetGloo(flags, place));
  }
  Subject subject(flags, comm.get(), device);
  COX_RETURN_IF_ERROR(subject.Prepare());
  const int iterations = IterationsOf(flags);
  for (int run = -flags.common.warmup; run < flags.common.runs; ++run) {
    if (!hooks.before()) return absl::AbortedError("the benchmark was ended");
    COX_RETURN_IF_ERROR(subject.Reset());
    COX_RETURN_IF_ERROR(comm->Barrier());
    const double cpu = CpuSeconds();
    const MonoTime start = Clock::Real().Now();
    for (int i = 0; i < iterations; ++i) {
      COX_RETURN_IF_ERROR(subject.Run());
    }
    RankReport report;
    report.seconds =
        absl::ToDoubleSeconds(Clock::Real().Now() - start) / iterations;
    report.cpu_s = CpuSeconds() - cpu;
    report.rss_bytes = RssBytes();
    if (!hooks.after(report)) {
      return absl::AbortedError("the benchmark was ended");
    }
  }
  COX_RETURN_IF_ERROR(subject.Reset());
  COX_RETURN_IF_ERROR(subject.Run());
  COX_ASSIGN_OR_RETURN(const std::string hash, subject.Check());
  std::string all(hash.size() * static_cast<size_t>(place.world), '\0');
  COX_RETURN_IF_ERROR(comm->AllGather(
      AsBytes(hash),
      std::as_writable_bytes(std::span(all.data(), all.size()))));
  last->identical = true;
  for (size_t at = 0; at < all.size(); at += hash.size()) {
    last->identical &= all.compare(at, hash.size(), hash) == 0;
  }
  return absl::OkStatus();
}

// The processes of one measurement.
class RankProcesses {
 public:
  RankProcesses() = default;
  ~RankProcesses() {
    for (const pid_t pid : pids_) {
      kill(pid, SIGKILL);
      WaitChild(pid, absl::Seconds(5));
    }
    for (const int fd : fds_) close(fd);
  }
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;

  absl::Status Start(const CollectiveBenchFlags& flags, int world) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    fds_.push_back(listener);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    if (bind(listener, generic, length) != 0 || listen(listener, 64) != 0 ||
        getsockname(listener, generic, &length) != 0) {
      return absl::UnavailableError("no free port on 127.0.0.1");
    }
    for (int rank = 0; rank < world; ++rank) {
      int start[2];
      int report[2];
      if (pipe(start) != 0 || pipe(report) != 0) {
        return absl::ResourceExhaustedError("no more pipes");
      }
      const Place place = {rank, world, listener, ntohs(address.sin_port)};
      const pid_t pid = fork();
      if (pid < 0) return absl::ResourceExhaustedError("cannot fork");
      if (pid == 0) {
        InitProcess(/*die_with_parent=*/true);
        RankReport last;
        const RunHooks hooks = {[&start] {
                                  char go = 0;
                                  return read(start[0], &go, 1) == 1;
                                },
                                [&report](const RankReport& one) {
                                  return write(report[1], &one, sizeof(one)) ==
                                         sizeof(one);
                                }};
        const absl::Status status = RunRank(flags, place, hooks, &last);
        last.code = static_cast<int>(status.code());
        std::snprintf(last.error, sizeof(last.error), "%s",
                      std::string(status.message()).c_str());
        _exit(write(report[1], &last, sizeof(last)) == sizeof(last) ? 0 : 1);
      }
      close(start[0]);
      close(report[1]);
      starts_.push_back(start[1]);
      reports_.push_back(report[0]);
      fds_.insert(fds_.end(), {start[1], report[0]});
      pids_.push_back(pid);
    }
    return absl::OkStatus();
  }

  void Go() {
    for (const int fd : starts_) {
      if (write(fd, "g", 1) != 1) return;  // the report says why
    }
  }

  absl::StatusOr<std::vector<RankReport>> Reports() {
    std::vector<RankReport> all(reports_.size());
    for (size_t rank = 0; rank < reports_.size(); ++rank) {
      if (read(reports_[rank], &all[rank], sizeof(RankReport)) !=
          sizeof(RankReport)) {
        return absl::AbortedError(absl::StrCat("rank ", rank, " died"));
      }
      if (all[rank].code != 0) {
        return absl::Status(static_cast<absl::StatusCode>(all[rank].code),
                            absl::StrCat("rank ", rank, ": ", all[rank].error));
      }
    }
    return all;
  }

 private:
  std::vector<pid_t> pids_;
  std::vector<int> starts_;
  std::vector<int> reports_;
  std::vector<int> fds_;
};

// Bytes that cross a link per byte of the result, as in NVIDIA's nccl-tests.
double BusFactor(const std::string& op, int world) {
  const double n = world;
  if (op == "all_reduce") return 2 * (n - 1) / n;
  return op == "broadcast" ? 1 : (n - 1) / n;
}

// The fields of one measurement, from the slowest rank's seconds of each run.
void Fill(const CollectiveBenchFlags& flags, int world,
          const std::vector<double>& seconds, bool identical,
          BenchReport& report) {
  std::vector<double> latency;
  std::vector<double> algorithm;
  std::vector<double> bus;
  for (const double s : seconds) {
    const double rate = static_cast<double>(flags.bytes) / s / 1e9;
    latency.push_back(s * 1e6);
    algorithm.push_back(rate);
    bus.push_back(rate * BusFactor(flags.op, world));
  }
  report.Text("op", flags.op);
  report.Text("backend", flags.backend);
  report.Integer("ranks", world);
  report.Integer("bytes", flags.bytes);
  report.Integer("iterations", IterationsOf(flags));
  report.Flag("tree_order", flags.backend == "gloo" || flags.tree_order);
  report.Spread("latency_us", latency);
  report.Spread("gb_s_algo", algorithm);
  report.Spread("gb_s_bus", bus);
  report.Flag("bit_identical", identical);
}

absl::Status Measure(const CollectiveBenchFlags& flags, int world,
                     BenchReport& report, bool* ok) {
  RankProcesses processes;
  COX_RETURN_IF_ERROR(processes.Start(flags, world));
  std::vector<double> seconds;
  int64_t largest = 0;
  int64_t total = 0;
  for (int run = -flags.common.warmup; run < flags.common.runs; ++run) {
    WaitIdle(flags.common.wait_idle_s);
    const BenchMeter meter;
    processes.Go();
    COX_ASSIGN_OR_RETURN(const std::vector<RankReport> ranks,
                         processes.Reports());
    BenchUse use = meter.Stop();
    if (run < 0) continue;
    double slowest = 0;
    double cpu = 0;
    total = 0;
    for (const RankReport& rank : ranks) {
      slowest = std::max(slowest, rank.seconds);
      cpu += rank.cpu_s;
      largest = std::max(largest, rank.rss_bytes);
      total += rank.rss_bytes;
    }
    // The ranks live: the meter took them for somebody else.
    use.cpu_s += cpu;
    use.other_cores = std::max(0.0, use.other_cores - cpu / use.wall_s);
    report.AddRun(use);
    seconds.push_back(slowest);
  }
  COX_ASSIGN_OR_RETURN(const std::vector<RankReport> last, processes.Reports());
  *ok = std::all_of(last.begin(), last.end(),
                    [](const RankReport& rank) { return rank.identical; });
  Fill(flags, world, seconds, *ok, report);
  report.Integer("peak_rss_bytes", largest);
  report.Integer("rss_total_bytes", total);
  return absl::OkStatus();
}

// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a launcher.
absl::StatusOr<Place> PlaceOfLauncher() {
  Place place;
  for (const auto& [name, value] :
       {std::pair<const char*, int*>{"RANK", &place.rank},
        {"WORLD_SIZE", &place.world},
        {"MASTER_PORT", &place.port}}) {
    const char* text = std::getenv(name);
    if (text == nullptr || !absl::SimpleAtoi(text, value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--launched: ", name, ": expected a number, found '",
                       text == nullptr ? "" : text, "'"));
    }
  }
  const char* host = std::getenv("MASTER_ADDR");
  if (host == nullptr) {
    return absl::InvalidArgumentError("--launched: MASTER_ADDR is not set");
  }
  place.host = host;
  return place;
}

// This process is one rank; rank 0 prints. Its own clock counts: a barrier
// stands before each run.
absl::Status MeasureLaunched(const CollectiveBenchFlags& flags,
                             const Place& place, int* code) {
  BenchReport report("collective", flags.common);
  std::vector<double> seconds;
  int run = -flags.common.warmup;
  RankReport last;
  BenchMeter meter;
  const RunHooks hooks = {[&meter] {
                            meter = BenchMeter();
                            return true;
                          },
                          [&](const RankReport& one) {
                            if (run++ < 0) return true;
                            report.AddRun(meter.Stop());
                            seconds.push_back(one.seconds);
                            return true;
                          }};
  COX_RETURN_IF_ERROR(RunRank(flags, place, hooks, &last));
  Fill(flags, place.world, seconds, last.identical, report);
  *code = last.identical ? kExitDone : kExitCheckFailed;
  if (place.rank == 0) *code = report.Print(last.identical);
  return absl::OkStatus();
}

// A whole number of elements per rank, so that blocks are equal.
CollectiveBenchFlags SizedFor(const CollectiveBenchFlags& flags, int world) {
  CollectiveBenchFlags sized = flags;
  const int64_t unit = int64_t{4} * world;
  sized.bytes = std::max(unit, flags.bytes / unit * unit);
  return sized;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "cox bench collective: %s\n",
               std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status)
             ? kExitUsage
             : kExitCheckFailed;
}

int Main(int argc, char** argv) {
  CollectiveBenchFlags flags;
  CLI::App app("collectives between processes on this machine",
               "cox bench collective");
  AddBenchFlags(app, flags.common);
  app.add_option("--op", flags.op)
      ->check(CLI::IsMember(
          {"all_reduce", "reduce_scatter", "all_gather", "broadcast"}));
  app.add_option("--backend", flags.backend)
      ->check(CLI::IsMember({"gloo", "nccl"}));
  app.add_option("--bytes", flags.bytes,
                 "of the whole result; of all blocks together")
      ->check(CLI::Range(int64_t{4}, int64_t{1} << 40));
  app.add_option("--ranks", flags.ranks, "1,2,4: one measurement each")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024));
  app.add_option("--iterations", flags.iterations,
                 "operations in a run; 0 = 50 up to 1 MiB, else 3");
  app.add_flag("!--own-order", flags.tree_order,
               "nccl: its own order of sums instead of the tree's");
  app.add_flag("--launched", flags.launched,
               "this process is one rank: RANK, WORLD_SIZE, MASTER_ADDR, "
               "MASTER_PORT (nccl)");
  app.add_option("--timeout", flags.timeout_s, "seconds per operation")
      ->check(CLI::Range(0.1, 3600.0));
  // `cox bench` hands on its own word.
  const int skip = argc > 1 && std::strcmp(argv[1], "collective") == 0 ? 1 : 0;
  try {
    app.parse(argc - skip, argv + skip);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kExitDone : kExitUsage;
  }
  if (!ApplyBenchFlags(flags.common)) return kExitUsage;
  if (flags.backend != "nccl" &&
      (flags.common.device == "cuda" || flags.launched)) {
    return Fail(absl::InvalidArgumentError(
        "--device cuda and --launched need --backend nccl"));
  }
  InitProcess(/*die_with_parent=*/false);
  int code = kExitDone;
  if (flags.launched) {
    const absl::StatusOr<Place> place = PlaceOfLauncher();
    if (!place.ok()) return Fail(place.status());
    const absl::Status status =
        MeasureLaunched(SizedFor(flags, place->world), *place, &code);
    return status.ok() ? code : Fail(status);
  }
  for (const int n : flags.ranks) {
    BenchReport report("collective", flags.common);
    bool ok = false;
    const absl::Status status = Measure(SizedFor(flags, n), n, report, &ok);
    if (!status.ok()) return Fail(status);
    code = std::max(code, report.Print(ok));
  }
  return code;
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) { return cox::Main(argc, argv); }
