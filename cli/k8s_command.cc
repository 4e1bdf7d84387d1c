#include "cli/k8s_command.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "cli/k8s_render.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/config/config.h"

namespace cox {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "cox k8s: %s\n",
               std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

std::string Kubectl() {
  const char* other = std::getenv("COX_KUBECTL");
  return other == nullptr ? "kubectl" : other;
}

// Runs kubectl with `input` on its stdin. `output` null = ours is inherited.
// The exit code, or 127 when it cannot be started.
int RunKubectl(const std::vector<std::string>& arguments,
               const std::string& input, std::string* output) {
  int in[2];
  int out[2] = {-1, -1};
  if (pipe(in) != 0 || (output != nullptr && pipe(out) != 0)) return 127;
  const std::string program = Kubectl();
  std::vector<char*> argv;
  argv.push_back(const_cast<char*>(program.c_str()));
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(in[0], STDIN_FILENO);
    if (output != nullptr) dup2(out[1], STDOUT_FILENO);
    for (const int fd : {in[0], in[1], out[0], out[1]}) {
      if (fd > 2) close(fd);
    }
    execvp(program.c_str(), argv.data());
    _exit(127);
  }
  close(in[0]);
  if (output != nullptr) close(out[1]);
  if (child < 0) return 127;
  // kubectl reads all of its input before it answers.
  for (size_t done = 0; done < input.size();) {
    const ssize_t n = write(in[1], input.data() + done, input.size() - done);
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  close(in[1]);
  if (output != nullptr) {
    char buffer[4096];
    ssize_t n = 0;
    while ((n = read(out[0], buffer, sizeof buffer)) > 0) {
      output->append(buffer, static_cast<size_t>(n));
    }
    close(out[0]);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 127;
}

absl::StatusOr<std::vector<K8sObject>> Render(const K8sOptions& options,
                                              std::string* ns) {
  LoadOptions load;
  load.path = options.file;
  load.overrides = options.overrides;
  load.check_files = false;  // the files are in the pods
  COX_ASSIGN_OR_RETURN(const cox::v1::RunConfig config, LoadConfig(load));
  RenderOptions render;
  COX_ASSIGN_OR_RETURN(render.run_yaml, Fs::Real().ReadAll(options.file));
  render.overrides = options.overrides;
  render.ns = options.ns;
  render.image_prefix = options.image_prefix;
  render.tag = options.tag;
  render.certs_dir = options.certs_dir;
  render.host_volumes = options.host_volumes;
  *ns = options.ns.empty() ? absl::StrCat("cox-", config.name()) : options.ns;
  return RenderRun(config, render);
}

absl::StatusOr<std::string> NamespaceOf(const K8sOptions& options) {
  if (!options.ns.empty()) return options.ns;
  LoadOptions load;
  load.path = options.file;
  load.overrides = options.overrides;
  load.check_files = false;
  COX_ASSIGN_OR_RETURN(const cox::v1::RunConfig config, LoadConfig(load));
  return absl::StrCat("cox-", config.name());
}

absl::StatusOr<std::string> ReadInput(const std::string& file) {
  if (file != "-") return Fs::Real().ReadAll(file);
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

bool ClusterAnswers() {
  std::string output;
  return RunKubectl({"version", "--request-timeout=5s", "-o", "json"}, "",
                    &output) == 0;
}

}  // namespace

int K8sRender(const K8sOptions& options) {
  std::string ns;
  const absl::StatusOr<std::vector<K8sObject>> objects = Render(options, &ns);
  if (!objects.ok()) return Fail(objects.status());
  const std::string text = PrintObjects(*objects);
  std::fwrite(text.data(), 1, text.size(), stdout);
  return kExitDone;
}

int K8sCheck(const K8sOptions& options) {
  const absl::StatusOr<std::string> text = ReadInput(options.file);
  if (!text.ok()) return Fail(text.status());
  const absl::StatusOr<std::vector<K8sObject>> objects = ParseObjects(*text);
  if (!objects.ok()) return Fail(objects.status());
  const std::vector<std::string> issues = CheckObjects(*objects);
  for (const std::string& issue : issues) {
    std::fprintf(stderr, "%s\n", issue.c_str());
  }
  if (!issues.empty()) return kExitCheckFailed;
  std::printf("%zu objects: consistent\n", objects->size());
  if (options.offline) return kExitDone;
  if (!ClusterAnswers()) {
    std::printf("no cluster answers: the API server was not asked\n");
    return kExitDone;
  }
  // A namespace that does not exist yet would refuse what lies in it.
  const int applied = RunKubectl(
      {"apply", "--dry-run=server", "--validate=strict", "-f", "-"}, *text,
      nullptr);
  if (applied != 0) return kExitCheckFailed;
  const std::string jobs = PrintObjects(EmbeddedJobs(*objects));
  if (!jobs.empty() &&
      RunKubectl({"create", "--dry-run=server", "--validate=strict", "-f",
                  "-"},
                 jobs, nullptr) != 0) {
    return kExitCheckFailed;
  }
  return kExitDone;
}

int K8sRun(const K8sOptions& options) {
  std::string ns;
  const absl::StatusOr<std::vector<K8sObject>> objects = Render(options, &ns);
  if (!objects.ok()) return Fail(objects.status());
  const int applied = RunKubectl(
      {"apply", "--server-side", "--field-manager=cox", "-f", "-"},
      PrintObjects(*objects), nullptr);
  if (applied != 0) return kExitUsage;
  std::printf("run: namespace %s; Ctrl-C detaches, the run goes on\n",
              ns.c_str());
  std::string shown;
  while (!ShutdownRequested()) {
    std::string state;
    const int code = RunKubectl(
        {"get", "jobset", "learner", "-n", ns, "-o",
         "jsonpath={.status.terminalState} restarts={.status.restarts} "
         "active={.status.replicatedJobsStatus[0].active} "
         "ready={.status.replicatedJobsStatus[0].ready}"},
        "", &state);
    if (code == 0 && state != shown) {
      std::printf("run: learner %s\n", state.c_str());
      std::fflush(stdout);
      shown = state;
    }
    if (state.starts_with("Completed")) return kExitDone;
    if (state.starts_with("Failed")) {
      std::fprintf(stderr, "run: failed; cox k8s logs learner --namespace %s\n",
                   ns.c_str());
      return kExitNeedsPerson;
    }
    SleepUnlessShutdown(absl::Seconds(2));
  }
  std::printf("run: detached; cox k8s status --namespace %s\n", ns.c_str());
  return kExitDone;
}

int K8sStatus(const K8sOptions& options) {
  const absl::StatusOr<std::string> ns = NamespaceOf(options);
  if (!ns.ok()) return Fail(ns.status());
  return RunKubectl({"get", "jobset,statefulset,deployment,pods", "-n", *ns,
                     "-o", "wide"},
                    "", nullptr) == 0
             ? kExitDone
             : kExitUsage;
}

int K8sLogs(const K8sOptions& options) {
  const absl::StatusOr<std::string> ns = NamespaceOf(options);
  if (!ns.ok()) return Fail(ns.status());
  std::vector<std::string> arguments = {
      "logs", "-n", *ns, "-l", "cox.dev/role=" + options.role, "--prefix",
      "--tail=50", "--max-log-requests=32"};
  if (options.follow) arguments.push_back("-f");
  return RunKubectl(arguments, "", nullptr) == 0 ? kExitDone : kExitUsage;
}

int K8sDoctor(const K8sOptions&) {
  if (!ClusterAnswers()) {
    std::fprintf(stderr,
                 "cluster    no answer within 5 s through '%s' (is it "
                 "installed, does it know a cluster?)\n",
                 Kubectl().c_str());
    return kExitCheckFailed;
  }
  std::printf("cluster    answers\n");
  bool fine = true;
  const auto crd = [&](const char* name, const char* what, bool needed) {
    std::string output;
    const bool have = RunKubectl({"get", "crd", name, "--ignore-not-found",
                                  "-o", "name"},
                                 "", &output) == 0 &&
                      !output.empty();
    std::printf("%-10s %s\n", what,
                have ? "installed" : needed ? "MISSING, needed"
                                            : "not installed, optional");
    fine = fine && (have || !needed);
  };
  crd("jobsets.jobset.x-k8s.io", "JobSet", true);
  crd("scaledobjects.keda.sh", "KEDA", false);
  crd("localqueues.kueue.x-k8s.io", "Kueue", false);
  crd("certificates.cert-manager.io", "cert-man.", false);
  crd("podmonitors.monitoring.coreos.com", "Prometheus", false);
  std::string text;
  RunKubectl({"get", "storageclass", "-o", "name"}, "", &text);
  std::printf("storage    %s\n",
              text.empty() ? "no storage class: use --host-volumes or "
                             "k8s/overlays/local"
                           : "classes found; checkpoints need ReadWriteMany");
  text.clear();
  RunKubectl({"get", "nodes", "-o",
              "jsonpath={range .items[*]}{.metadata.name} gpus="
              "{.status.allocatable.nvidia\\.com/gpu}{\"\\n\"}{end}"},
             "", &text);
  std::printf("nodes\n%s", text.c_str());
  text.clear();
  RunKubectl({"get", "service", "-n", "kube-system", "kube-dns",
              "--ignore-not-found", "-o", "name"},
             "", &text);
  std::printf("DNS        %s\n", text.empty()
                                     ? "no kube-dns service seen; the roles "
                                       "find each other by name"
                                     : "kube-dns");
  // A node that is gone keeps a learner group waiting for ever.
  text.clear();
  RunKubectl({"get", "pods", "-A", "-l", "app.kubernetes.io/name=coxswain",
              "-o",
              "jsonpath={range .items[?(@.metadata.deletionTimestamp)]}"
              "{.metadata.namespace}/{.metadata.name} on {.spec.nodeName} "
              "since {.metadata.deletionTimestamp}{\"\\n\"}{end}"},
             "", &text);
  if (!text.empty()) {
    std::printf("terminating\n%s  if the node is lost: kubectl taint node NODE "
                "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute\n",
                text.c_str());
  }
  return fine ? kExitDone : kExitCheckFailed;
}

}  // namespace cox
