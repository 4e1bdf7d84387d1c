#include "cli/bench_report.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "nlohmann/json.hpp"

#ifndef COX_GIT_VERSION
#define COX_GIT_VERSION "unknown"
#endif

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

double Seconds(const timeval& t) {
  return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
}

double WallSeconds() {
  return 1e-9 * static_cast<double>(Clock::Real().Now().ns);
}

double OwnCpuSeconds() {
  double total = 0;
  for (const int who : {RUSAGE_SELF, RUSAGE_CHILDREN}) {
    rusage use{};
    getrusage(who, &use);
    total += Seconds(use.ru_utime) + Seconds(use.ru_stime);
  }
  return total;
}

// Seconds that the machine's cores were busy since it started.
double MachineCpuSeconds() {
  std::ifstream in("/proc/stat");
  std::string name;
  in >> name;
  double busy = 0;
  for (int i = 0; i < 8; ++i) {
    double jiffies = 0;
    in >> jiffies;
    busy += i == 3 || i == 4 ? 0 : jiffies;  // idle, waiting for a disk
  }
  return busy / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// A line of /proc/self/status in bytes, such as "VmHWM:".
int64_t StatusBytes(const std::string& key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) == 0) {
      std::istringstream rest(line.substr(key.size()));
      int64_t kb = 0;
      rest >> kb;
      return kb * 1024;
    }
  }
  return 0;
}

int AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

std::string CpuIsa() {
  std::ifstream in("/proc/cpuinfo");
  std::string isa = "baseline";
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("flags", 0) != 0) {
      continue;
    }
    for (const char* flag : {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}) {
      if (line.find(flag) != std::string::npos) {
        isa = flag;
      }
    }
    break;
  }
  return isa;
}

Json SpreadOf(std::vector<double> values) {
  if (values.empty()) {
    return nullptr;
  }
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  const double median =
      n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
  return {{"min", values.front()}, {"median", median}, {"max", values.back()}};
}

void PrintTable(const Json& line) {
  for (const auto& [name, value] : line.items()) {
    std::printf("%-22s %s\n", name.c_str(),
                value.is_string() ? value.get<std::string>().c_str()
                                  : value.dump().c_str());
  }
}

}  // namespace

void AddBenchFlags(CLI::App& app, BenchFlags& flags) {
  app.add_flag("--json", flags.json, "one line of JSON per measurement");
  app.add_option("--model", flags.model, "Hugging Face folder");
  app.add_option("--dtype", flags.dtype)
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--device", flags.device)
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--threads", flags.threads, "compute threads, 0 = all");
  app.add_option("--cpus", flags.cpus, "pin to these, e.g. 0,1");
  app.add_option("--runs", flags.runs, "timed repeats")
      ->check(CLI::Range(1, 1000));
  app.add_option("--warmup", flags.warmup, "untimed ones before")
      ->check(CLI::Range(0, 1000));
  app.add_option("--seed", flags.seed, "run r uses seed + r");
  app.add_option("--wait-idle", flags.wait_idle_s,
                 "seconds to wait for a quiet machine before each run");
}

bool ApplyBenchFlags(const BenchFlags& flags) {
  if (flags.cpus.empty()) {
    return true;
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const absl::string_view part : absl::StrSplit(flags.cpus, ',')) {
    int cpu = 0;
    if (!absl::SimpleAtoi(part, &cpu) || cpu < 0 || cpu >= CPU_SETSIZE) {
      std::fprintf(stderr, "--cpus: numbers such as 0,1 expected, found '%s'\n",
                   flags.cpus.c_str());
      return false;
    }
    CPU_SET(static_cast<size_t>(cpu), &set);
  }
  if (sched_setaffinity(0, sizeof(set), &set) != 0) {
    std::fprintf(stderr, "--cpus: this machine has no processors %s\n",
                 flags.cpus.c_str());
    return false;
  }
  return true;
}

void WaitIdle(double seconds) {
  const double end = WallSeconds() + seconds;
  while (seconds > 0 && WallSeconds() < end) {
    const BenchMeter meter;
    if (SleepUnlessShutdown(absl::Milliseconds(500)) ||
        meter.Stop().other_cores < 0.1) {
      return;
    }
  }
}

BenchMeter::BenchMeter()
    : wall_(WallSeconds()),
      cpu_(OwnCpuSeconds()),
      machine_(MachineCpuSeconds()) {}

BenchUse BenchMeter::Stop() const {
  BenchUse use;
  use.wall_s = WallSeconds() - wall_;
  use.cpu_s = OwnCpuSeconds() - cpu_;
  if (use.wall_s > 0) {
    use.other_cores = std::max(
        0.0, (MachineCpuSeconds() - machine_ - use.cpu_s) / use.wall_s);
  }
  return use;
}

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) {
    return 0;
  }
  const size_t rank = std::min(
      values.size() - 1,
      static_cast<size_t>(std::max(
          0.0, std::ceil(q * static_cast<double>(values.size())) - 1)));
  std::nth_element(values.begin(),
                   values.begin() + static_cast<std::ptrdiff_t>(rank),
                   values.end());
  return values[rank];
}

struct BenchReport::Impl {
  std::string bench;
  BenchFlags flags;
  std::vector<BenchUse> runs;
  Json fields = Json::object();
};

BenchReport::BenchReport(std::string bench, const BenchFlags& flags)
    : impl_(std::make_unique<Impl>()) {
  impl_->bench = std::move(bench);
  impl_->flags = flags;
}

BenchReport::~BenchReport() = default;

void BenchReport::AddRun(const BenchUse& use) { impl_->runs.push_back(use); }

void BenchReport::Spread(const std::string& name,
                         const std::vector<double>& values) {
  impl_->fields[name] = SpreadOf(values);
}

void BenchReport::Percentiles(const std::string& name,
                              const std::vector<double>& values) {
  if (values.empty()) {
    impl_->fields[name] = nullptr;
    return;
  }
  impl_->fields[name] = {{"p50", Quantile(values, 0.5)},
                         {"p90", Quantile(values, 0.9)},
                         {"p99", Quantile(values, 0.99)},
                         {"max", Quantile(values, 1)}};
}

void BenchReport::Number(const std::string& name, double value) {
  impl_->fields[name] = value;
}
void BenchReport::Integer(const std::string& name, int64_t value) {
  impl_->fields[name] = value;
}
void BenchReport::Text(const std::string& name, const std::string& value) {
  impl_->fields[name] = value;
}
void BenchReport::Flag(const std::string& name, bool value) {
  impl_->fields[name] = value;
}
void BenchReport::Null(const std::string& name) {
  impl_->fields[name] = nullptr;
}

int BenchReport::Print(bool ok) {
  const BenchFlags& flags = impl_->flags;
  const auto use = [this](double BenchUse::*field) {
    std::vector<double> values;
    for (const BenchUse& run : impl_->runs) {
      values.push_back(run.*field);
    }
    return SpreadOf(values);
  };
  rusage children{};
  getrusage(RUSAGE_CHILDREN, &children);
  const int64_t child_peak = children.ru_maxrss * 1024;
  Json line = {{"schema", "cox.bench/1"},
               {"bench", impl_->bench},
               {"impl", "cox"},
               {"version", COX_GIT_VERSION},
               {"model", flags.model.empty() ? Json(nullptr)
                                             : Json(BaseName(flags.model))},
               {"params", nullptr},
               {"dtype", flags.dtype},
               {"device", flags.device},
               {"threads", flags.threads > 0 ? flags.threads : AllowedCpus()},
               {"cpus", flags.cpus.empty() ? Json(nullptr) : Json(flags.cpus)},
               {"isa", CpuIsa()},
               {"seed", flags.seed},
               {"runs", impl_->runs.size()},
               {"wall_s", use(&BenchUse::wall_s)},
               {"cpu_s", use(&BenchUse::cpu_s)},
               {"other_cores", use(&BenchUse::other_cores)},
               {"peak_rss_bytes", std::max(StatusBytes("VmHWM:"), child_peak)},
               {"rss_total_bytes", StatusBytes("VmRSS:")}};
  line.update(impl_->fields);
  line["ok"] = ok;
  if (flags.json) {
    std::printf("%s\n", line.dump().c_str());
  } else {
    PrintTable(line);
  }
  std::fflush(stdout);
  return ok ? kExitDone : kExitCheckFailed;
}

}  // namespace cox
