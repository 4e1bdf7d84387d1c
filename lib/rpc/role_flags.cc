#include "lib/rpc/role_flags.h"

#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/base/thread.h"
#include "lib/rpc/http_server.h"

namespace cox {
namespace {

std::string Usage(std::string_view program, std::string_view name) {
  return absl::StrCat(
      "usage: ", std::string(program),
      " --coordinator ADDR [flags]\n"
      "  --coordinator ADDR  host:port, or file:PATH of endpoints.json\n"
      "  --run-id ID         run to join (default: whichever it is)\n"
      "  --name NAME         default ",
      std::string(name),
      "\n"
      "  --bind HOST         gRPC host, default 127.0.0.1\n"
      "  --port N            gRPC port, default 0 = any free one\n"
      "  --advertise HOST    name or address by which others reach this\n"
      "                      process, default that of --bind\n"
      "  --tls DIR           folder with ca.crt, tls.crt, tls.key: mutual "
      "TLS;\n"
      "                      default $COX_TLS_DIR; none = loopback only\n"
      "  --http-host HOST    probes and metrics, default 127.0.0.1\n"
      "  --http-port N       default 0 = any free one\n"
      "  --stay              after the end of the run wait for SIGTERM\n"
      "  --die-with-parent   end when the parent process ends\n");
}

absl::StatusOr<int> ParsePort(const std::string& flag,
                              const std::string& text) {
  int port = 0;
  if (!absl::SimpleAtoi(text, &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": expected a port, found '", text, "'"));
  }
  return port;
}

}  // namespace

absl::StatusOr<RoleFlags> ParseRoleFlags(std::string_view program,
                                         std::string_view default_name,
                                         int argc, const char* const* argv) {
  RoleFlags flags;
  flags.name = std::string(default_name);
  std::string host = "127.0.0.1";
  int port = 0;
  for (int i = 1; i < argc; ++i) {
    std::string flag = argv[i];
    if (flag == "--help" || flag == "-h") {
      return absl::CancelledError(Usage(program, default_name));
    }
    if (flag == "--die-with-parent") {
      flags.die_with_parent = true;
      continue;
    }
    if (flag == "--stay") {
      flags.stay = true;
      continue;
    }
    std::string value;
    if (const size_t equals = flag.find('='); equals != std::string::npos) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    } else if (i + 1 < argc) {
      value = argv[++i];
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(flag, ": unknown flag, or a flag without value\n",
                       Usage(program, default_name)));
    }
    if (flag == "--coordinator") {
      flags.coordinator = value;
    } else if (flag == "--run-id") {
      flags.run_id = value;
    } else if (flag == "--name") {
      flags.name = value;
    } else if (flag == "--bind") {
      host = value;
    } else if (flag == "--port") {
      COX_ASSIGN_OR_RETURN(port, ParsePort(flag, value));
    } else if (flag == "--advertise") {
      flags.advertise = value;
    } else if (flag == "--tls") {
      flags.tls_dir = value;
    } else if (flag == "--http-host") {
      flags.http_host = value;
    } else if (flag == "--http-port") {
      COX_ASSIGN_OR_RETURN(flags.http_port, ParsePort(flag, value));
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(flag, ": unknown flag\n", Usage(program, default_name)));
    }
  }
  if (flags.coordinator.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--coordinator: expected an address\n", Usage(program, default_name)));
  }
  flags.bind = absl::StrCat(host, ":", port);
  return flags;
}

absl::Status RunUntilSignal(const std::function<absl::Status()>& run,
                            const std::function<void()>& stop) {
  Thread signals("signals", [&stop] {
    while (!SleepUnlessShutdown(absl::Hours(1))) {
    }
    stop();
  });
  absl::Status status = run();
  RequestShutdown();
  return status;
}

int EndOfRun(const RoleFlags& flags) {
  if (!flags.stay || SignalReceived()) return kExitDone;
  LogInfo("the run is done; waiting for SIGTERM", {});
  HttpServerOptions http;
  http.host = flags.http_host;
  http.port = flags.http_port;
  const auto server = HttpServer::Start(std::move(http));
  if (!server.ok()) {
    LogWarning("probes", {{"error", server.status().ToString()}});
  }
  while (!SignalReceived()) {
    absl::SleepFor(absl::Milliseconds(200));
  }
  return kExitDone;
}

int PrintFlagsStatus(const absl::Status& status) {
  const std::string text(status.message());
  const bool help = absl::IsCancelled(status);
  std::fprintf(help ? stdout : stderr, "%s\n", text.c_str());
  return help ? kExitDone : kExitUsage;
}

}  // namespace cox
