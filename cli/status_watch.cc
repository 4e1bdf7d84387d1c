#include "cli/status_watch.h"

#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/fs.h"
#include "lib/rpc/operator_client.h"

namespace cox {
namespace {

std::string ReadProc(const std::string& pid, const char* file) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/", file));
  // A process that ends meanwhile is a read error, which throws from an
  // iterator over the buffer.
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// From "PID (NAME) S PPID ...": the name may hold anything. 0 = gone or a
// zombie.
pid_t ParentOf(const std::string& pid) {
  const std::string text = ReadProc(pid, "stat");
  const size_t end = text.rfind(')');
  if (end == std::string::npos) return 0;
  char state = 0;
  int parent = 0;
  if (std::sscanf(text.c_str() + end + 1, " %c %d", &state, &parent) != 2 ||
      state == 'Z') {
    return 0;
  }
  return parent;
}

OperatorClientOptions ClientOptions(const std::string& run_dir) {
  OperatorClientOptions options;
  options.address = absl::StrCat("file:", JoinPath(run_dir, "endpoints.json"));
  options.patience = absl::Milliseconds(50);
  return options;
}

}  // namespace

std::map<std::string, pid_t> RoleProcesses(pid_t parent) {
  std::map<std::string, pid_t> found;
  auto pids = Fs::Real().List("/proc");
  for (const std::string& pid : pids.value_or(std::vector<std::string>())) {
    if (pid.find_first_not_of("0123456789") != std::string::npos ||
        ParentOf(pid) != parent) {
      continue;
    }
    const std::vector<std::string> words =
        absl::StrSplit(ReadProc(pid, "cmdline"), '\0');
    std::string name;
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      if (words[i] == "--name") name = words[i + 1];
    }
    if (words[0].ends_with("cox-coordinator")) name = "coordinator";
    if (!name.empty()) found[name] = std::atoi(pid.c_str());
  }
  return found;
}

int64_t StatusWatch::View::progress() const {
  int64_t sum = 0;
  for (const auto& stage : status.stages()) {
    sum += stage.step() + (stage.state() == "done" ? 1 : 0);
  }
  return sum;
}

std::string StatusWatch::View::AddressOf(const std::string& name) const {
  for (const auto& session : status.sessions()) {
    // Without a state it has registered, but not got ready.
    if (session.name() == name && session.alive() && !session.state().empty()) {
      return session.address();
    }
  }
  return "";
}

StatusWatch::StatusWatch(std::string run_dir, absl::Duration pause)
    : run_dir_(std::move(run_dir)), pause_(pause) {
  thread_ = Thread("status-watch", [this] { Loop(); });
}

StatusWatch::~StatusWatch() {
  stopping_.Notify();
  thread_.Join();
}

void StatusWatch::Loop() {
  OperatorClient client(ClientOptions(run_dir_));
  while (!stopping_.HasBeenNotified()) {
    const MonoTime asked = Clock::Real().Now();
    auto status = client.Status();
    {
      MutexLock lock(&mutex_);
      view_.asked = asked;
      view_.answered = status.ok();
      if (status.ok()) {
        view_.answered_at = Clock::Real().Now();
        view_.status = *std::move(status);
      }
    }
    stopping_.WaitFor(pause_);
  }
}

StatusWatch::View StatusWatch::Now() const {
  MutexLock lock(&mutex_);
  return view_;
}

std::string StatusWatch::Stuck() const {
  OperatorClient client(ClientOptions(run_dir_));
  auto stuck = client.Stuck();
  if (!stuck.ok()) return stuck.status().ToString();
  std::string text;
  for (const auto& wait : stuck->waits()) {
    absl::StrAppend(&text, "  ", wait.who(), " waits for ", wait.whom(), ": ",
                    wait.what(), ", since ", wait.since_ms(), " ms\n");
  }
  return text;
}

}  // namespace cox
