#ifndef COX_CLI_BENCH_REPORT_H_
#define COX_CLI_BENCH_REPORT_H_

// What all benchmarks share: flags, the measuring of time, CPU and memory, and
// one line of JSON per measurement with the common fields (docs/benchmarks.md:
// schema "cox.bench/1"). A value that cannot be measured is null.
//
//   BenchFlags flags;
//   AddBenchFlags(app, flags);            // then parse
//   BenchReport report("ledger", flags);
//   for (int run = 0; run < flags.runs; ++run) {
//     BenchMeter meter;
//     ...
//     report.AddRun(meter.Stop());
//     rates.push_back(n / seconds);
//   }
//   report.Spread("submits_s", rates);
//   return report.Print(/*ok=*/true);

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace CLI {
class App;
}  // namespace CLI

namespace cox {

struct BenchFlags {
  bool json = false;
  std::string model;  // Hugging Face folder; "" = the bench needs none
  std::string dtype = "fp32";
  std::string device = "cpu";
  int threads = 0;   // 0 = as many as the process may use
  std::string cpus;  // "0,1" = pinned to them; "" = not pinned
  int runs = 5;
  int warmup = 1;
  uint64_t seed = 1;
  double wait_idle_s = 0;
};
void AddBenchFlags(CLI::App& app, BenchFlags& flags);
// Pins the process. False, with a line on stderr: `cpus` is no such list.
bool ApplyBenchFlags(const BenchFlags& flags);
// Waits until others use less than 0.1 core, or `seconds` have passed.
void WaitIdle(double seconds);

struct BenchUse {
  double wall_s = 0;
  double cpu_s = 0;        // of this process and its dead children
  double other_cores = 0;  // used by anybody else meanwhile
};
class BenchMeter {
 public:
  BenchMeter();
  BenchUse Stop() const;

 private:
  double wall_ = 0;
  double cpu_ = 0;
  double machine_ = 0;
};

// q-quantile of `values` (nearest rank); 0 when there are none.
double Quantile(std::vector<double> values, double q);

class BenchReport {
 public:
  BenchReport(std::string bench, const BenchFlags& flags);
  ~BenchReport();
  BenchReport(const BenchReport&) = delete;
  BenchReport& operator=(const BenchReport&) = delete;

  void AddRun(const BenchUse& use);
  // {"min", "median", "max"} over the runs; null when empty.
  void Spread(const std::string& name, const std::vector<double>& values);
  // {"p50", "p90", "p99", "max"}.
  void Percentiles(const std::string& name, const std::vector<double>& values);
  void Number(const std::string& name, double value);
  void Integer(const std::string& name, int64_t value);
  void Text(const std::string& name, const std::string& value);
  void Flag(const std::string& name, bool value);
  void Null(const std::string& name);
  // Prints JSON or a table. The exit code: 0 when `ok`, else 1.
  int Print(bool ok);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cox

#endif  // COX_CLI_BENCH_REPORT_H_
