// cox-coordinator --config FILE [a.b.c=value ...] [--run-dir DIR] [--host H]
//                 [--port N] [--http-host H] [--http-port N] [--advertise H]
//                 [--tls DIR] [--pod-deletion-costs] [--die-with-parent]
//
// Start: configuration, lock, ledger epoch, tokenizer, prompts, then ports.
// SIGTERM: answers what waits, lets open calls finish, closes the ledger, 0.

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "coordinator/coordinator_service.h"
#include "coordinator/refusal_service.h"
#include "coordinator/run_setup.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/config/config.h"
#include "lib/rpc/tls.h"

namespace cox {
namespace {

// How long a coordinator with --stay refuses before it ends and is started
// again, perhaps with a configuration that somebody put right.
constexpr absl::Duration kRefusalTime = absl::Minutes(5);

constexpr char kUsage[] =
    "usage: cox-coordinator --config FILE [a.b.c=value ...]\n"
    "  --run-dir DIR      run directory (default: of the configuration)\n"
    "  --host HOST        address to listen on (127.0.0.1)\n"
    "  --port N           gRPC port; 0 = any, default: the recorded one\n"
    "  --advertise HOST   name by which others reach it (that of --host)\n"
    "  --tls DIR          ca.crt, tls.crt, tls.key: mutual TLS; default\n"
    "                     $COX_TLS_DIR; none = loopback only\n"
    "  --http-host HOST   of /livez, /readyz, /metrics (that of --host)\n"
    "  --http-port N      port of /livez, /readyz, /metrics (0 = any)\n"
    "  --stay             after the last stage serve on until SIGTERM; a\n"
    "                     start that needs a person (2, 43): tell it to all\n"
    "                     roles for five minutes\n"
    "  --pod-deletion-costs  tell the cluster which actor pods are idle\n"
    "  --die-with-parent  end when the parent process ends\n";

struct Flags {
  LoadOptions config;
  std::string run_dir;
  std::string tls_dir;
  CoordinatorOptions coordinator;
  bool stay = false;
  bool die_with_parent = false;
  bool help = false;
};

absl::StatusOr<Flags> ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (!name.starts_with("--")) {
      flags.config.overrides.push_back(std::move(name));
      continue;
    }
    if (name == "--die-with-parent") {
      flags.die_with_parent = true;
      continue;
    }
    if (name == "--stay") {
      flags.stay = true;
      continue;
    }
    if (name == "--pod-deletion-costs") {
      flags.coordinator.pod_deletion_costs = true;
      continue;
    }
    if (name == "--help") {
      flags.help = true;
      return flags;
    }
    std::string value;
    if (const size_t equals = name.find('='); equals != std::string::npos) {
      value = name.substr(equals + 1);
      name = name.substr(0, equals);
    } else if (i + 1 < argc) {
      value = argv[++i];
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": a value is missing"));
    }
    int* port = name == "--port"        ? &flags.coordinator.port
                : name == "--http-port" ? &flags.coordinator.http_port
                                        : nullptr;
    if (port != nullptr) {
      if (!absl::SimpleAtoi(value, port) || *port < 0 || *port > 65535) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, ": 0..65535 expected, found '", value, "'"));
      }
    } else if (name == "--config") {
      flags.config.path = value;
    } else if (name == "--run-dir") {
      flags.run_dir = value;
    } else if (name == "--host") {
      flags.coordinator.host = value;
    } else if (name == "--http-host") {
      flags.coordinator.http_host = value;
    } else if (name == "--advertise") {
      flags.coordinator.advertise = value;
    } else if (name == "--tls") {
      flags.tls_dir = value;
    } else {
      return absl::InvalidArgumentError(absl::StrCat(name, ": unknown flag"));
    }
  }
  if (flags.config.path.empty()) {
    return absl::InvalidArgumentError("--config is missing");
  }
  return flags;
}

constexpr absl::Duration kLockPatience = absl::Seconds(10);

// Held until the process ends. A convenience: that no two coordinators write
// is ensured by the ledger's epoch.
absl::Status LockRunDir(const std::string& run_dir) {
  COX_RETURN_IF_ERROR(Fs::Real().MakeDirs(run_dir, 0700));
  const std::string path = JoinPath(run_dir, "coordinator.lock");
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) {
    return absl::InternalError(absl::StrCat(path, ": cannot be opened"));
  }
  // The one before may still be dying: its supervisor was killed just now.
  const MonoTime give_up = Clock::Real().Now() + kLockPatience;
  while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (Clock::Real().Now() < give_up) {
      absl::SleepFor(absl::Milliseconds(20));
      continue;
    }
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(run_dir, ": another coordinator runs in this directory"));
  }
  return absl::OkStatus();
}

std::string RunDirOf(const Flags& flags, const cox::v1::RunConfig& config) {
  if (!flags.run_dir.empty()) {
    return flags.run_dir;
  }
  return config.run_dir().empty() ? JoinPath("runs", config.name())
                                  : config.run_dir();
}

// Returns `why`, with --stay only after all roles could hear it, so that they
// end with its exit code too: until SIGTERM or kRefusalTime.
absl::Status Refuse(const absl::Status& why, const Flags& flags) {
  const int code = ExitCodeFor(why);
  if (!flags.stay || (code != kExitUsage && code != kExitNeedsPerson)) {
    return why;  // or the next start may do better
  }
  LogError("refuses every role",
           {Field("exit_code", code), {"why", std::string(why.message())}});
  const auto refusal = Refusal::Start(why, flags.coordinator);
  if (refusal.ok()) {
    SleepUnlessShutdown(kRefusalTime);
  } else {
    LogError("cannot refuse", {{"why", refusal.status().ToString()}});
  }
  return why;
}

absl::StatusOr<int> Run(const Flags& flags) {
  COX_RETURN_IF_ERROR(InitProcessTls(flags.tls_dir, "coordinator"));
  const absl::StatusOr<cox::v1::RunConfig> config = LoadConfig(flags.config);
  if (!config.ok()) {
    return Refuse(config.status(), flags);
  }
  const std::string run_dir = RunDirOf(flags, *config);
  COX_RETURN_IF_ERROR(LockRunDir(run_dir));
  absl::StatusOr<PreparedRun> run = PrepareRun(Fs::Real(), *config, run_dir);
  if (!run.ok()) {
    return Refuse(run.status(), flags);
  }
  COX_ASSIGN_OR_RETURN(
      std::unique_ptr<Coordinator> coordinator,
      Coordinator::Start(Fs::Real(), *std::move(run), flags.coordinator));
  std::optional<int> code;
  while (!code.has_value()) {
    if (SleepUnlessShutdown(absl::Milliseconds(50))) {
      code = kExitDone;
      break;
    }
    code = coordinator->ExitCode();
    // A pod that ends is started again, and people want to read the results.
    if (flags.stay && code == kExitDone) {
      code.reset();
    }
  }
  coordinator->Shutdown(absl::Seconds(2));
  LogInfo("coordinator ends", {Field("exit_code", *code)});
  return *code;
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  absl::StatusOr<cox::Flags> flags = cox::ParseFlags(argc, argv);
  if (!flags.ok() || flags->help) {
    if (!flags.ok()) {
      std::fprintf(stderr, "%s\n",
                   std::string(flags.status().message()).c_str());
    }
    std::fprintf(stderr, "%s", cox::kUsage);
    return flags.ok() ? cox::kExitDone : cox::kExitUsage;
  }
  cox::InitProcess(flags->die_with_parent);
  cox::InitLog("coordinator");
  const absl::StatusOr<int> code = cox::Run(*flags);
  if (!code.ok()) {
    std::fprintf(stderr, "cox-coordinator: %s\n",
                 std::string(code.status().message()).c_str());
    return cox::ExitCodeFor(code.status());
  }
  return *code;
}
