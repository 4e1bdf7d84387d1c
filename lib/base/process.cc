#include "lib/base/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "lib/base/clock.h"

extern char** environ;

namespace cox {
namespace {

std::atomic<bool> shutdown_requested{false};
std::atomic<bool> signal_received{false};
static_assert(std::atomic<bool>::is_always_lock_free);

// Becomes readable at shutdown and stays so: wakes every sleeper.
int ShutdownEvent() {
  static const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return fd;
}

void OnSignal(int) {
  const int saved_errno = errno;
  signal_received.store(true, std::memory_order_relaxed);
  RequestShutdown();
  errno = saved_errno;
}

// Everything the child needs, built before fork(): between fork() and exec() a
// process with threads may only call async-signal-safe functions.
struct ExecPlan {
  std::vector<std::string> environment;
  std::vector<char*> argv;
  std::vector<char*> envp;
  int log_fd = -1;
  int null_fd = -1;
  int error_fd = -1;
  pid_t parent = 0;
};

void BuildPlan(const ChildOptions& options, ExecPlan& plan) {
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::string name(text.substr(0, text.find('=')));
    if (!options.extra_env.contains(name)) plan.environment.emplace_back(text);
  }
  for (const auto& [name, value] : options.extra_env) {
    plan.environment.push_back(absl::StrCat(name, "=", value));
  }
  for (std::string& entry : plan.environment) {
    plan.envp.push_back(entry.data());
  }
  plan.envp.push_back(nullptr);
  for (const std::string& argument : options.argv) {
    plan.argv.push_back(const_cast<char*>(argument.c_str()));
  }
  plan.argv.push_back(nullptr);
}

[[noreturn]] void RunChild(const ExecPlan& plan) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died before prctl() took effect.
  if (getppid() != plan.parent) _exit(kExitRetryable);
  // exec() keeps ignored signals and the mask: give the child a clean state.
  signal(SIGPIPE, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  signal(SIGINT, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  bool ok = dup2(plan.null_fd, STDIN_FILENO) >= 0;
  if (plan.log_fd >= 0) {
    ok = ok && dup2(plan.log_fd, STDOUT_FILENO) >= 0 &&
         dup2(plan.log_fd, STDERR_FILENO) >= 0;
  }
  if (ok) execve(plan.argv[0], plan.argv.data(), plan.envp.data());
  const int error = errno;
  const ssize_t ignored = write(plan.error_fd, &error, sizeof(error));
  static_cast<void>(ignored);
  _exit(127);
}

absl::Status SpawnError(int error, const std::string& what) {
  const std::string message =
      absl::StrCat("start ", what, ": ", std::strerror(error));
  return error == ENOENT ? absl::NotFoundError(message)
                         : absl::InternalError(message);
}

// Blocks until the child's exec() closed the pipe; the errno it wrote, or 0.
int ReadExecError(int fd) {
  int error = 0;
  ssize_t n;
  do {
    n = read(fd, &error, sizeof(error));
  } while (n < 0 && errno == EINTR);
  return n == static_cast<ssize_t>(sizeof(error)) ? error : 0;
}

void CloseIfOpen(int fd) {
  if (fd >= 0) close(fd);
}

}  // namespace

int ExitCodeFor(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitDone;
    case absl::StatusCode::kDataLoss:
      return kExitNeedsPerson;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
      return kExitUsage;
    default:
      return kExitRetryable;
  }
}

void InitProcess(bool die_with_parent) {
  ShutdownEvent();  // created before a handler could need it
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
#if !defined(__SANITIZE_ADDRESS__)
  // Also hides memory and environment from other processes of the same user;
  // LeakSanitizer has to attach to its own process, so not under it.
  prctl(PR_SET_DUMPABLE, 0);
#endif
  if (die_with_parent) prctl(PR_SET_PDEATHSIG, SIGKILL);
}

bool ShutdownRequested() {
  return shutdown_requested.load(std::memory_order_relaxed);
}

bool SignalReceived() {
  return signal_received.load(std::memory_order_relaxed);
}

void RequestShutdown() {
  shutdown_requested.store(true, std::memory_order_relaxed);
  const uint64_t one = 1;
  const ssize_t ignored = write(ShutdownEvent(), &one, sizeof(one));
  static_cast<void>(ignored);
}

bool SleepUnlessShutdown(absl::Duration duration) {
  const Clock& clock = Clock::Real();
  const MonoTime end = clock.Now() + std::min(duration, absl::Hours(24 * 365));
  while (!ShutdownRequested()) {
    const absl::Duration left = end - clock.Now();
    if (left <= absl::ZeroDuration()) return false;
    // Rounded up: a pause must not end early; bounded: the argument is an int.
    const int64_t ms = std::min<int64_t>(
        absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))),
        3'600'000);
    pollfd event = {ShutdownEvent(), POLLIN, 0};
    poll(&event, 1, static_cast<int>(ms));
  }
  return true;
}

absl::StatusOr<pid_t> SpawnChild(const ChildOptions& options) {
  if (options.argv.empty()) {
    return absl::InvalidArgumentError("start child: argv is empty");
  }
  const std::string& program = options.argv[0];
  ExecPlan plan;
  BuildPlan(options, plan);
  plan.parent = getpid();
  if (!options.log_path.empty()) {
    plan.log_fd = open(options.log_path.c_str(),
                       O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (plan.log_fd < 0) {
      return SpawnError(errno,
                        absl::StrCat(program, " with log ", options.log_path));
    }
  }
  plan.null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  int error_pipe[2] = {-1, -1};
  if (plan.null_fd < 0 || pipe2(error_pipe, O_CLOEXEC) != 0) {
    const int error = errno;
    CloseIfOpen(plan.log_fd);
    CloseIfOpen(plan.null_fd);
    return SpawnError(error, program);
  }
  plan.error_fd = error_pipe[1];

  const pid_t pid = fork();
  if (pid == 0) RunChild(plan);
  const int fork_error = errno;
  close(error_pipe[1]);
  close(plan.null_fd);
  CloseIfOpen(plan.log_fd);
  if (pid < 0) {
    close(error_pipe[0]);
    return SpawnError(fork_error, program);
  }
  const int exec_error = ReadExecError(error_pipe[0]);
  close(error_pipe[0]);
  if (exec_error != 0) {
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return SpawnError(exec_error, program);
  }
  return pid;
}

ChildExit PollChild(pid_t pid) {
  int wait_status = 0;
  const pid_t result = waitpid(pid, &wait_status, WNOHANG);
  if (result == 0 || (result < 0 && errno == EINTR)) return {};
  ChildExit exit = {.exited = true, .code = 255, .signal = 0};
  if (result < 0) return exit;  // not our child, or reaped before
  if (WIFSIGNALED(wait_status)) {
    exit.signal = WTERMSIG(wait_status);
  } else {
    exit.code = WEXITSTATUS(wait_status);
  }
  return exit;
}

ChildExit WaitChild(pid_t pid, absl::Duration timeout) {
  const Clock& clock = Clock::Real();
  const MonoTime end = clock.Now() + std::min(timeout, absl::Hours(24 * 365));
  for (;;) {
    const ChildExit exit = PollChild(pid);
    if (exit.exited || clock.Now() >= end) return exit;
    poll(nullptr, 0, 10);
  }
}

void SignalChild(pid_t pid, int signal) {
  if (pid > 0) kill(-pid, signal);
}

std::string ExecutableDir() {
  std::error_code error;
  const std::filesystem::path path =
      std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::string(".") : path.parent_path().string();
}

}  // namespace cox
