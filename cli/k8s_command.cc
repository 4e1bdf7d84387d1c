#include "cli/k8s_command.h"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <map>

#include "absl/strings/str_cat.h"
#include "cli/k8s_render.h"
#include "cli/kubectl.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/config/config.h"

namespace cox {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "cox k8s: %s\n", std::string(status.message()).c_str());
  return ExitCodeFor(status);
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

// Before a run's first launch its namespace does not exist, and the server
// refuses whatever lies in it: that is asked for in `default` instead.
std::vector<K8sObject> InNamespacesThatExist(std::vector<K8sObject> objects) {
  std::map<std::string, std::string> places;
  for (K8sObject& object : objects) {
    K8sObject& metadata = object["metadata"];
    if (!metadata.contains("namespace")) continue;
    const std::string ns = metadata["namespace"];
    if (!places.contains(ns)) {
      std::string found;
      const int code = RunKubectl(
          {"get", "namespace", ns, "-o", "name", "--ignore-not-found"}, "",
          &found);
      const bool missing = code == 0 && found.empty();
      places[ns] = missing ? "default" : ns;
      if (missing) {
        std::printf("namespace %s does not exist yet: asked in 'default'\n",
                    ns.c_str());
      }
    }
    metadata["namespace"] = places[ns];
  }
  return objects;
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
  const std::vector<K8sObject> asked = InNamespacesThatExist(*objects);
  const int applied =
      RunKubectl({"apply", "--dry-run=server", "--validate=strict", "-f", "-"},
                 asked == *objects ? *text : PrintObjects(asked), nullptr);
  if (applied != 0) return kExitCheckFailed;
  const std::string jobs = PrintObjects(EmbeddedJobs(asked));
  if (!jobs.empty() &&
      RunKubectl({"create", "--dry-run=server", "--validate=strict", "-f", "-"},
                 jobs, nullptr) != 0) {
    return kExitCheckFailed;
  }
  return kExitDone;
}

int K8sRun(const K8sOptions& options) {
  std::string ns;
  const absl::StatusOr<std::vector<K8sObject>> objects = Render(options, &ns);
  if (!objects.ok()) return Fail(objects.status());
  const int applied =
      RunKubectl({"apply", "--server-side", "--field-manager=cox", "-f", "-"},
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
  std::vector<std::string> arguments = {"logs",
                                        "-n",
                                        *ns,
                                        "-l",
                                        "cox.dev/role=" + options.role,
                                        "--prefix",
                                        "--tail=50",
                                        "--max-log-requests=32"};
  if (options.follow) arguments.push_back("-f");
  return RunKubectl(arguments, "", nullptr) == 0 ? kExitDone : kExitUsage;
}

}  // namespace cox
