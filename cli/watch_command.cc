#include "cli/watch_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr absl::Duration kLogPoll = absl::Milliseconds(200);
constexpr uint64_t kMaxRead = uint64_t{1} << 20;  // of one log at a time

int64_t CommittedSteps(const v1::StatusResponse& status) {
  int64_t steps = 0;
  for (const v1::StageStatus& stage : status.stages()) steps += stage.step();
  return steps;
}

std::optional<double> MetricOf(const v1::StatusResponse& status,
                               std::string_view name) {
  for (const v1::Metric& metric : status.last_metrics()) {
    if (metric.name() == name) return metric.value();
  }
  return std::nullopt;
}

// "actor 2/3": living sessions of how many known ones.
std::string Living(const v1::StatusResponse& status) {
  std::map<std::string, std::pair<int, int>> roles;
  for (const v1::SessionStatus& session : status.sessions()) {
    auto& [alive, all] = roles[session.role()];
    alive += session.alive() ? 1 : 0;
    ++all;
  }
  std::string text;
  for (const auto& [role, counts] : roles) {
    absl::StrAppend(&text, text.empty() ? "" : "  ", role, " ", counts.first,
                    "/", counts.second);
  }
  return text;
}

void AddSessions(const v1::StatusResponse& status, std::string* screen) {
  absl::StrAppendFormat(screen, "%-16s %-5s %8s  %s\n", "PROCESS", "", "MEMORY",
                        "DOES");
  for (const v1::SessionStatus& session : status.sessions()) {
    absl::StrAppendFormat(
        screen, "%-16s %-5s %5.0f MB  %s, %.0f s%s\n", session.name(),
        session.alive() ? "alive" : "gone",
        static_cast<double>(session.rss_bytes()) / 1e6, session.state(),
        static_cast<double>(session.state_ms()) / 1e3,
        session.waiting_for().empty()
            ? ""
            : absl::StrCat(", waits for ", session.waiting_for()));
  }
}

}  // namespace

std::string TopScreen(const v1::StatusResponse& now,
                      const v1::StatusResponse* before, double seconds) {
  std::string screen =
      absl::StrFormat("run %s: %s, epoch %d, up %.0f s\n", now.name(),
                      now.state(), now.epoch(), now.uptime_s());
  std::string stages;
  for (const v1::StageStatus& stage : now.stages()) {
    const bool runs = stage.state() != "pending" && stage.state() != "done";
    absl::StrAppend(&stages, stages.empty() ? "" : "  ", runs ? ">" : "",
                    stage.kind(), " ", stage.step(), "/", stage.total_steps());
  }
  absl::StrAppend(&screen, "stages:  ", stages, "\n");
  std::string rate = "-";
  if (before != nullptr && seconds > 0) {
    // A restart of the coordinator cannot take steps back.
    rate = absl::StrFormat(
        "%.2f", std::max(0.0, static_cast<double>(CommittedSteps(now) -
                                                  CommittedSteps(*before)) /
                                  seconds));
  }
  const auto shown = [&now](const char* name) {
    const std::optional<double> value = MetricOf(now, name);
    return value.has_value() ? absl::StrFormat("%.4g", *value)
                             : std::string("-");
  };
  absl::StrAppend(&screen, "steps/s: ", rate, "  step ", shown("timing_s/step"),
                  " s, of it waiting ", shown("timing_s/wait_batch"),
                  " s  tokens/s ", shown("tokens_s"), "\n");
  absl::StrAppend(&screen, "units:   ", now.units_pending(), " pending  ",
                  now.units_leased(), " leased  ", now.units_submitted(),
                  " submitted\n");
  absl::StrAppend(&screen, "stale:   mean ", shown("async/staleness_mean"),
                  "  max ", shown("async/staleness_max"), " versions\n");
  absl::StrAppend(&screen, "alive:   ", Living(now), "\n\n");
  AddSessions(now, &screen);
  if (!now.failure().empty()) {
    absl::StrAppend(&screen, "\nfailure: ", now.failure(), "\n");
  }
  return screen;
}

int Top(const TopOptions& options) {
  std::unique_ptr<OperatorClient> client = ConnectTo(options.target);
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  std::optional<v1::StatusResponse> before;
  MonoTime before_at;
  for (int64_t n = 0; options.count == 0 || n < options.count; ++n) {
    if (n > 0 && SleepUnlessShutdown(absl::Seconds(options.every_s))) break;
    const MonoTime now = Clock::Real().Now();
    absl::StatusOr<v1::StatusResponse> status = client->Status();
    if (!status.ok()) {
      if (before.has_value() && absl::IsUnavailable(status.status())) {
        std::printf("the coordinator does not answer any more\n");
        return kExitDone;
      }
      return FailUnreachable("top", options.target, status.status());
    }
    const double seconds = absl::ToDoubleSeconds(now - before_at);
    const std::string screen =
        TopScreen(*status, before.has_value() ? &*before : nullptr, seconds);
    // Home, each line cleared to its end, the rest below.
    std::printf("%s%s%s", terminal ? "\033[H\033[J" : "", screen.c_str(),
                terminal ? "" : "\n");
    std::fflush(stdout);
    before = *std::move(status);
    before_at = now;
    if (before->state() == "done" || before->state() == "failed") break;
  }
  return kExitDone;
}

LogFollower::LogFollower(std::string dir, std::string name)
    : dir_(std::move(dir)), name_(std::move(name)) {}

void LogFollower::SkipAll() {
  for (const std::string& file :
       Fs::Real().List(dir_).value_or(std::vector<std::string>())) {
    read_[file] = Fs::Real().FileSize(JoinPath(dir_, file)).value_or(0);
  }
}

std::string LogFollower::Poll() {
  std::string out;
  for (const std::string& file :
       Fs::Real().List(dir_).value_or(std::vector<std::string>())) {
    if (!file.ends_with(".log") ||
        (!name_.empty() && file != absl::StrCat(name_, ".log"))) {
      continue;
    }
    const std::string path = JoinPath(dir_, file);
    const uint64_t size = Fs::Real().FileSize(path).value_or(0);
    uint64_t& read = read_[file];
    if (size < read) read = 0;  // another file under the same name
    if (size == read) continue;
    const std::string bytes =
        Fs::Real()
            .ReadRange(path, read, std::min(size - read, kMaxRead))
            .value_or("");
    const size_t end = bytes.rfind('\n');
    if (end == std::string::npos) continue;  // the line is still being written
    read += end + 1;
    const std::string process = file.substr(0, file.size() - 4);
    for (const auto line : absl::StrSplit(bytes.substr(0, end), '\n')) {
      absl::StrAppend(&out, name_.empty() ? process + ": " : std::string(),
                      line, "\n");
    }
  }
  return out;
}

int FollowLogs(const std::string& run_dir, const std::string& name,
               int32_t lines) {
  LogFollower follower(JoinPath(run_dir, "logs"), name);
  follower.SkipAll();
  const int shown = ShowLogs(run_dir, name, lines);
  // A run that has just begun has no logs yet: they come.
  if (shown != kExitDone && !Fs::Real().Exists(run_dir)) return shown;
  do {
    std::fputs(follower.Poll().c_str(), stdout);
    std::fflush(stdout);
  } while (!SleepUnlessShutdown(kLogPoll));
  return kExitDone;
}

}  // namespace cox
