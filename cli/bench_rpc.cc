#include "cli/bench_rpc.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "cli/bench_echo_client.h"
#include "cli/bench_report.h"
#include "cli/bench_rollout.h"
#include "lib/base/log.h"
#include "lib/base/process.h"

namespace cox {
namespace {

struct RpcBenchFlags {
  BenchFlags common;
  std::string pattern = "unary";
  int64_t payload = 0;
  int clients = 1;
  int inflight = 1;
  double seconds = 10;
  std::vector<int> actors = {1};
  double service_time_ms = 1000;
  RolloutBenchOptions rollout;
};

void PutCommon(const RpcBenchFlags& flags, BenchReport& report) {
  report.Text("pattern", flags.pattern);
  report.Integer("payload", flags.payload);
}

absl::Status MeasureEcho(const RpcBenchFlags& flags, int& code) {
  EchoOptions options;
  options.stream = flags.pattern == "stream";
  options.payload = flags.payload;
  options.clients = flags.clients;
  options.inflight = flags.inflight;
  options.seconds = flags.seconds;
  BenchReport report("rpc", flags.common);
  PutCommon(flags, report);
  report.Integer("clients", flags.clients);
  report.Integer("inflight", flags.inflight);
  std::vector<double> rates;
  std::vector<double> rtt;
  int64_t damaged = 0;
  for (int run = -flags.common.warmup; run < flags.common.runs; ++run) {
    WaitIdle(flags.common.wait_idle_s);
    const BenchMeter meter;
    COX_ASSIGN_OR_RETURN(const EchoResult result, RunEcho(options));
    if (run < 0) continue;
    report.AddRun(meter.Stop());
    rates.push_back(static_cast<double>(result.messages) / result.seconds);
    rtt.insert(rtt.end(), result.rtt_us.begin(), result.rtt_us.end());
    damaged += result.damaged;
  }
  report.Spread("messages_s", rates);
  report.Null("samples_s");
  report.Percentiles("rtt_us", rtt);
  report.Null("coordinator_cpu_us_per_sample");
  report.Null("coordinator_rss_bytes_per_actor");
  report.Null("efficiency");
  report.Integer("lost_samples", damaged);
  code = std::max(code, report.Print(damaged == 0));
  return absl::OkStatus();
}

double Median(std::vector<double> values) { return Quantile(values, 0.5); }

// One line for `actors`; samples per second go to `rate`.
absl::Status MeasureRollout(const RpcBenchFlags& flags, int actors,
                            std::optional<double> rate_of_one, double& rate,
                            int& code) {
  RolloutBenchOptions options = flags.rollout;
  options.actors = actors;
  options.payload = flags.payload;
  options.service_time_s = flags.service_time_ms / 1000;
  options.seconds = flags.seconds;
  BenchReport report("rpc", flags.common);
  PutCommon(flags, report);
  std::vector<double> rates, counted, messages, cpu, rss, efficiency, own;
  std::vector<double> ack, lease;
  int64_t lost = 0, failed = 0, units = 0, steps = 0;
  bool ok = true;
  std::string problem;
  for (int run = -flags.common.warmup; run < flags.common.runs; ++run) {
    options.seed = flags.common.seed + static_cast<uint64_t>(run + 1000);
    WaitIdle(flags.common.wait_idle_s);
    const BenchMeter meter;
    COX_ASSIGN_OR_RETURN(const RolloutBenchResult r, RunRolloutBench(options));
    if (run < 0) continue;
    report.AddRun(meter.Stop());
    const double samples = static_cast<double>(r.window_samples);
    rates.push_back(r.samples_s);
    counted.push_back(samples / r.window_s);
    messages.push_back(samples / options.samples_per_message / r.window_s);
    if (samples > 0) cpu.push_back(1e6 * r.coordinator_cpu_s / samples);
    own.push_back(r.own_cpu_s / r.window_s);
    rss.push_back(r.coordinator_rss_bytes_per_actor);
    efficiency.push_back(r.samples_s /
                         (actors * rate_of_one.value_or(r.samples_s)));
    ack.insert(ack.end(), r.ack_us.begin(), r.ack_us.end());
    lease.insert(lease.end(), r.lease_us.begin(), r.lease_us.end());
    lost += r.lost_units * options.samples_per_message;
    failed += r.failed_calls;
    units += r.acknowledged;
    steps += r.steps;
    ok = ok && r.ledger_ok && r.lost_units == 0 && r.failed_calls == 0;
    if (problem.empty()) {
      problem = r.ledger_ok ? r.first_error : r.ledger_error;
    }
  }
  report.Integer("clients", actors);
  report.Integer("inflight", 1);
  report.Integer("simulated_actors", actors);
  report.Number("service_time_ms", flags.service_time_ms);
  report.Integer("samples_per_message", options.samples_per_message);
  report.Text("mode", options.mode);
  report.Number("offered_samples_s",
                actors * options.samples_per_message /
                    std::max(1e-9, options.service_time_s));
  report.Spread("messages_s", messages);
  report.Spread("samples_s", rates);
  report.Spread("counted_samples_s", counted);
  report.Percentiles("rtt_us", ack);
  report.Percentiles("lease_us", lease);
  report.Spread("coordinator_cpu_us_per_sample", cpu);
  report.Spread("coordinator_rss_bytes_per_actor", rss);
  report.Spread("efficiency", efficiency);
  report.Spread("client_cores", own);
  report.Integer("lost_samples", lost);
  report.Integer("failed_calls", failed);
  report.Integer("units", units);
  report.Integer("steps", steps);
  report.Text("problem", problem);
  rate = Median(rates);
  code = std::max(code, report.Print(ok));
  return absl::OkStatus();
}

absl::Status Measure(const RpcBenchFlags& flags, int& code) {
  if (flags.pattern != "rollout") return MeasureEcho(flags, code);
  double rate_of_one = 0;
  double rate = 0;
  // One actor first: efficiency is measured against it.
  std::vector<int> counts = flags.actors;
  std::erase(counts, 1);
  COX_RETURN_IF_ERROR(
      MeasureRollout(flags, 1, std::nullopt, rate_of_one, code));
  for (const int actors : counts) {
    COX_RETURN_IF_ERROR(MeasureRollout(flags, actors, rate_of_one, rate, code));
  }
  return absl::OkStatus();
}

}  // namespace

int BenchRpc(int argc, char** argv) {
  RpcBenchFlags flags;
  flags.common.runs = 1;
  flags.common.warmup = 0;
  CLI::App app{
      "Messages over gRPC; with --pattern rollout a coordinator "
      "process under simulated actors, checked against its ledger",
      "cox bench rpc"};
  AddBenchFlags(app, flags.common);
  app.add_option("--pattern", flags.pattern)
      ->check(CLI::IsMember({"unary", "stream", "rollout"}));
  app.add_option("--payload", flags.payload,
                 "bytes of a message; rollout: of a unit, about, 0 = answers "
                 "of 24 tokens")
      ->check(CLI::Range(int64_t{0}, int64_t{3} << 20));
  app.add_option("--clients", flags.clients, "connections (unary, stream)")
      ->check(CLI::Range(1, 4096));
  app.add_option("--inflight", flags.inflight,
                 "messages under way per connection (unary, stream)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--seconds", flags.seconds, "of a run")
      ->check(CLI::Range(0.1, 3600.0));
  app.add_option("--simulated-actors", flags.actors,
                 "rollout: numbers of actors, e.g. 1,10,100,1000; one actor "
                 "is measured first in any case")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  app.add_option("--service-time-ms", flags.service_time_ms,
                 "rollout: what generating a unit takes")
      ->check(CLI::Range(0.0, 3.6e6));
  app.add_option("--samples-per-message", flags.rollout.samples_per_message,
                 "rollout: samples of a unit")
      ->check(CLI::Range(1, 1024));
  app.add_option("--mode", flags.rollout.mode, "rollout: schedule.mode")
      ->check(CLI::IsMember({"streaming", "fixed_lag"}));
  app.add_option("--dir", flags.rollout.dir, "rollout: work below this folder");
  app.add_flag("--keep", flags.rollout.keep, "rollout: leave run directories");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitDone : kExitUsage;
  }
  if (!ApplyBenchFlags(flags.common)) return kExitUsage;
  int code = kExitDone;
  const absl::Status measured = Measure(flags, code);
  if (!measured.ok()) {
    std::fprintf(stderr, "cox bench rpc: %s\n", measured.ToString().c_str());
    return kExitCheckFailed;
  }
  return code;
}

}  // namespace cox
