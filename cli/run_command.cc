#include "cli/run_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/checkpoint_plan.h"
#include "cli/eval_table.h"
#include "cli/hang_watch.h"
#include "cli/progress_view.h"
#include "cli/run_directory.h"
#include "cli/status_watch.h"
#include "cli/supervisor.h"
#include "cli/usage_log.h"
#include "lib/base/fs.h"
#include "lib/config/config.h"
#include "lib/rpc/operator_client.h"
#include "lib/rpc/tls.h"

namespace cox {
namespace {

// How often the status is asked for, to show it and to follow `cox scale`.
constexpr absl::Duration kLookEvery = absl::Milliseconds(500);

// A run's directory and the processes that belong to it.
struct Launch {
  cox::v1::RunConfig config;
  std::string config_file;
  std::vector<std::string> overrides;
  std::string run_dir;
  std::string actor_endpoints;  // "" = endpoints.json
  std::string tls_dir;          // "" = plaintext; see RunOptions
};

absl::StatusOr<Launch> Prepare(const RunOptions& options) {
  Launch launch;
  std::error_code error;
  const bool is_directory = std::filesystem::is_directory(options.file, error);
  launch.config_file =
      is_directory ? JoinPath(options.file, "config.yaml") : options.file;
  launch.overrides = options.overrides;
  launch.actor_endpoints = options.actor_endpoints;
  launch.tls_dir = options.tls_dir;
  COX_ASSIGN_OR_RETURN(launch.config,
                       LoadConfig({.path = launch.config_file,
                                   .overrides = options.overrides,
                                   .yaml_text = "",
                                   .check_files = true}));
  if (is_directory) {
    launch.run_dir = options.file;
  } else if (!launch.config.run_dir().empty()) {
    launch.run_dir = launch.config.run_dir();
  } else {
    launch.run_dir = JoinPath("runs", launch.config.name());
  }
  launch.run_dir =
      std::filesystem::absolute(launch.run_dir, error).lexically_normal();
  return launch;
}

ChildSpec MakeChild(const Launch& launch, std::string role, std::string name,
                    std::vector<std::string> arguments) {
  ChildSpec child;
  child.options.argv.push_back(
      JoinPath(ExecutableDir(), absl::StrCat("cox-", role)));
  for (std::string& argument : arguments) {
    child.options.argv.push_back(std::move(argument));
  }
  if (!launch.tls_dir.empty()) {
    child.options.argv.push_back("--tls");
    child.options.argv.push_back(JoinPath(launch.tls_dir, role));
  }
  child.options.log_path =
      JoinPath(JoinPath(launch.run_dir, "logs"), absl::StrCat(name, ".log"));
  child.role = std::move(role);
  child.name = std::move(name);
  return child;
}

// Process number `index` of `count` of a role that follows the coordinator.
ChildSpec MakeFollower(const Launch& launch, const std::string& role,
                       int32_t index, int32_t count) {
  const std::string name = absl::StrCat(role, "-", index);
  const std::string endpoints =
      role == "actor" && !launch.actor_endpoints.empty()
          ? launch.actor_endpoints
          : JoinPath(launch.run_dir, "endpoints.json");
  std::vector<std::string> arguments = {
      "--coordinator", absl::StrCat("file:", endpoints), "--name", name};
  if (role == "learner") {
    arguments.insert(arguments.end(), {"--rank", absl::StrCat(index), "--world",
                                       absl::StrCat(count)});
  }
  return MakeChild(launch, role, name, std::move(arguments));
}

std::vector<ChildSpec> MakeChildren(const Launch& launch) {
  std::vector<std::string> arguments = {"--config", launch.config_file,
                                        "--run-dir", launch.run_dir};
  for (const std::string& override : launch.overrides) {
    arguments.push_back(override);
  }
  std::vector<ChildSpec> children;
  children.push_back(
      MakeChild(launch, "coordinator", "coordinator", arguments));
  const auto add = [&](const char* role, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      children.push_back(MakeFollower(launch, role, i, count));
    }
  };
  add("reward", launch.config.roles().rewards());
  add("actor", launch.config.roles().actors());
  add("learner", launch.config.roles().learners());
  return children;
}

// As many processes as an operator wants (`cox scale`).
absl::Status FollowScale(const cox::v1::StatusResponse& status,
                         const Launch& launch, Supervisor& supervisor) {
  for (const auto& [role, count] : status.wanted()) {
    COX_RETURN_IF_ERROR(supervisor.Resize(
        role, count, [&launch, &role = role, count = count](int32_t index) {
          return MakeFollower(launch, role, index, count);
        }));
  }
  return absl::OkStatus();
}

// Last lines of a child's log, for a failure that ends the run.
void PrintLogTail(const std::string& reason) {
  const size_t at = reason.find("(log: ");
  if (at == std::string::npos) {
    return;
  }
  const std::string path = reason.substr(at + 6, reason.size() - at - 7);
  auto text = Fs::Real().ReadAll(path);
  if (!text.ok()) {
    return;
  }
  size_t begin = text->size();
  for (int lines = 0; begin > 0 && lines < 6; --begin) {
    if ((*text)[begin - 1] == '\n' && begin != text->size()) {
      ++lines;
      if (lines == 6) {
        break;
      }
    }
  }
  std::fprintf(stderr, "%s", text->substr(begin).c_str());
}

// Waits until the coordinator's endpoints.json is of this incarnation and it
// answers. Returns the run's exit code if it ended before that.
std::optional<int> WaitForCoordinator(Supervisor& supervisor,
                                      const Launch& launch,
                                      OperatorClient& client) {
  const MonoTime deadline = Clock::Real().Now() + absl::Minutes(5);
  while (Clock::Real().Now() < deadline) {
    if (ShutdownRequested()) {
      return kExitRetryable;
    }
    if (std::optional<int> code = supervisor.Poll()) {
      return code;
    }
    auto endpoints = ReadEndpoints(launch.run_dir);
    const auto pids = supervisor.Pids();
    if (endpoints.ok() && endpoints->pid == pids.front().second &&
        client.Status().ok()) {
      return std::nullopt;
    }
    SleepUnlessShutdown(absl::Milliseconds(50));
  }
  std::fprintf(stderr,
               "run: the coordinator did not answer within 5 minutes (log: "
               "%s/logs/coordinator.log)\n",
               launch.run_dir.c_str());
  return kExitRetryable;
}

// Starts again what stands still: nobody else would.
void EndHangs(const StatusWatch::View& seen, const Launch& launch,
              Supervisor& supervisor, ProgressView& view) {
  const cox::v1::LimitSettings& settings = launch.config.limits();
  const absl::Duration patience =
      absl::Seconds(settings.coordinator_patience_s());
  HangLimits limits;
  limits.silent = absl::Seconds(5 * settings.suspect_s());
  limits.group =
      absl::Seconds(settings.collective_timeout_s() + settings.suspect_s()) +
      patience;
  std::vector<std::string> hung;
  if (seen.answered) {
    hung = HungProcesses(seen.status, limits);
  } else if (Clock::Real().Now() - seen.answered_at > patience) {
    hung = {"coordinator"};
  }
  for (const std::string& name : hung) {
    const absl::Duration age = name == "coordinator" ? patience : limits.silent;
    if (supervisor.KillHung(name, age)) {
      view.Note(absl::StrCat(name, ": stands still; ended"));
    }
  }
}

int Finish(Supervisor& supervisor, const Launch& launch, int code) {
  if (code == kExitDone) {
    // The coordinator exits 0 after a drain, too.
    auto endpoints = ReadEndpoints(launch.run_dir);
    if (!endpoints.ok() || endpoints->state != "done") {
      supervisor.Drain(absl::Seconds(30));
      std::printf("run: stopped; the same command resumes in %s\n",
                  launch.run_dir.c_str());
      return kExitRetryable;
    }
  }
  // The other processes have seen DONE; give them a moment to leave by
  // themselves, so that none is killed while it still writes its log.
  const MonoTime deadline = Clock::Real().Now() + absl::Seconds(10);
  while (code == kExitDone && Clock::Real().Now() < deadline) {
    (void)supervisor.Poll();
    const auto pids = supervisor.Pids();
    if (std::all_of(pids.begin(), pids.end(),
                    [](const auto& child) { return child.second == 0; })) {
      break;
    }
    SleepUnlessShutdown(absl::Milliseconds(50));
  }
  supervisor.Drain(absl::Seconds(code == kExitDone ? 2 : 30));
  if (code != kExitDone) {
    std::fprintf(stderr, "run: ended with %d: %s\n", code,
                 supervisor.reason().c_str());
    PrintLogTail(supervisor.reason());
    if (code == kExitRetryable) {
      std::fprintf(stderr, "run: resumable: the same command goes on in %s\n",
                   launch.run_dir.c_str());
    }
    return code;
  }
  auto eval = Fs::Real().ReadAll(JoinPath(launch.run_dir, "eval.json"));
  if (eval.ok()) {
    auto table = FormatEvalTable(*eval);
    std::printf("\n%s", table.ok() ? table->c_str() : "");
  }
  std::printf("\nrun: done in %s (report: %s/report.html)\n",
              launch.run_dir.c_str(), launch.run_dir.c_str());
  return kExitDone;
}

// Until the run ends; returns the exit code.
int Supervise(const Launch& launch, Supervisor& supervisor,
              ProgressView& view) {
  // In a thread of its own: a coordinator that stands still must not keep this
  // one from its children.
  StatusWatch watch(launch.run_dir, kLookEvery);
  UsageLog usage([](pid_t pid) { return UsageOf(pid); });
  MonoTime shown;
  while (true) {
    if (ShutdownRequested()) {
      view.Note("draining (SIGINT or SIGTERM)");
      supervisor.Drain(absl::Seconds(30));
      view.Note(absl::StrCat("stopped; the same command resumes in ",
                             launch.run_dir));
      return kExitRetryable;
    }
    usage.Look(supervisor.Pids(), Clock::Real().Now());
    if (std::optional<int> code = supervisor.Poll()) {
      view.End();
      // Only `cox plan --compare` reads it.
      static_cast<void>(WriteFileDurably(
          Fs::Real(), JoinPath(launch.run_dir, "usage.json"), usage.Json()));
      return Finish(supervisor, launch, *code);
    }
    const StatusWatch::View seen = watch.Now();
    EndHangs(seen, launch, supervisor, view);
    if (seen.answered && seen.answered_at != shown) {
      shown = seen.answered_at;
      if (view.Due()) view.Show(seen.status);
      const absl::Status scaled = FollowScale(seen.status, launch, supervisor);
      if (!scaled.ok()) view.Note(std::string(scaled.message()));
    }
    SleepUnlessShutdown(absl::Milliseconds(50));
  }
}

}  // namespace

int Run(const RunOptions& options) {
  auto launch = Prepare(options);
  if (!launch.ok()) {
    std::fprintf(stderr, "%s\n",
                 std::string(launch.status().message()).c_str());
    return ExitCodeFor(launch.status());
  }
  if (!options.tls_dir.empty()) {
    if (const absl::Status tls =
            InitProcessTls(JoinPath(options.tls_dir, "operator"), "operator");
        !tls.ok()) {
      std::fprintf(stderr, "run: %s\n", std::string(tls.message()).c_str());
      return kExitUsage;
    }
  }
  auto lock = RunLock::Acquire(launch->run_dir);
  if (!lock.ok()) {
    std::fprintf(stderr, "run: %s\n",
                 std::string(lock.status().message()).c_str());
    return kExitUsage;
  }
  if (absl::Status status =
          Fs::Real().MakeDirs(JoinPath(launch->run_dir, "logs"));
      !status.ok()) {
    std::fprintf(stderr, "run: %s\n", std::string(status.message()).c_str());
    return kExitUsage;
  }
  RestartOptions restarts;
  restarts.max_restarts = options.max_restarts;
  Supervisor supervisor(MakeChildren(*launch), restarts, Clock::Real());
  ProgressView view(isatty(STDOUT_FILENO) != 0, options.quiet,
                    launch->config.log().metrics_every_s());
  supervisor.OnRestart(
      [&view](const std::string& name, const std::string& why) {
        view.Note(absl::StrCat(name, ": ", why, "; starting it again"));
      });
  view.Note(absl::StrCat("run directory ", launch->run_dir));
  // A configuration that names no usable model is the coordinator's to refuse.
  if (const auto plan = PlanCheckpoints(launch->config, launch->run_dir);
      plan.ok() && !plan->stages.empty()) {
    if (const absl::Status fits = plan->CheckFits(); !fits.ok()) {
      std::fprintf(stderr, "run: %s\n", std::string(fits.message()).c_str());
      return kExitUsage;
    }
    view.Note(plan->Text());
  }
  OperatorClientOptions client_options;
  client_options.address =
      absl::StrCat("file:", JoinPath(launch->run_dir, "endpoints.json"));
  client_options.patience = absl::Milliseconds(500);
  OperatorClient client(client_options);
  supervisor.ShouldRestart([&client] {
    auto status = client.Status();
    return !status.ok() || status->state() != "draining";
  });
  if (absl::Status status = supervisor.Start("coordinator"); !status.ok()) {
    std::fprintf(stderr, "run: %s\n", std::string(status.message()).c_str());
    return kExitUsage;
  }
  if (std::optional<int> code =
          WaitForCoordinator(supervisor, *launch, client)) {
    return Finish(supervisor, *launch, *code);
  }
  if (absl::Status status = supervisor.StartAll(); !status.ok()) {
    std::fprintf(stderr, "run: %s\n", std::string(status.message()).c_str());
    return kExitUsage;
  }
  return Supervise(*launch, supervisor, view);
}

}  // namespace cox
