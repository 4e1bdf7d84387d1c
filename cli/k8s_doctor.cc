// `cox k8s doctor`: what a cluster has and lacks, and whether two pods can sum
// their data.

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/k8s_command.h"
#include "cli/k8s_render.h"
#include "cli/kubectl.h"
#include "lib/base/process.h"
#include "lib/base/status.h"

namespace cox {
namespace {

constexpr char kJobSet[] = "cox-doctor";

// A JobSet of two ranks on two nodes, if there are two, that run
// cox-group-check as learners would run: same account rights, same network.
// Image and namespace are filled in.
constexpr char kAllReduceJob[] = R"(
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {name: cox-doctor, labels: {app.kubernetes.io/name: coxswain}}
spec:
  network: {enableDNSHostnames: true, subdomain: cox-doctor}
  failurePolicy: {maxRestarts: 0}
  replicatedJobs:
  - name: w
    replicas: 1
    template:
      spec:
        completionMode: Indexed
        completions: 2
        parallelism: 2
        backoffLimit: 0
        activeDeadlineSeconds: 180
        template:
          metadata: {labels: {cox.dev/role: doctor}}
          spec:
            restartPolicy: Never
            automountServiceAccountToken: false
            enableServiceLinks: false
            topologySpreadConstraints:
            - maxSkew: 1
              topologyKey: kubernetes.io/hostname
              whenUnsatisfiable: ScheduleAnyway
              labelSelector: {matchLabels: {cox.dev/role: doctor}}
            securityContext:
              runAsNonRoot: true
              runAsUser: 65532
              runAsGroup: 65532
              seccompProfile: {type: RuntimeDefault}
            containers:
            - name: rank
              image: coxswain
              command: [cox-group-check]
              env:
              - name: RANK
                valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
              - {name: WORLD_SIZE, value: "2"}
              - {name: MASTER_ADDR, value: cox-doctor-w-0-0.cox-doctor}
              - {name: MASTER_PORT, value: "29500"}
              - name: POD_IP
                valueFrom: {fieldRef: {fieldPath: status.podIP}}
              resources:
                requests: {cpu: 100m, memory: 256Mi}
                limits: {memory: 2Gi}
              securityContext:
                allowPrivilegeEscalation: false
                readOnlyRootFilesystem: true
                capabilities: {drop: [ALL]}
)";

absl::StatusOr<std::string> AllReduceJob(const K8sOptions& options) {
  COX_ASSIGN_OR_RETURN(std::vector<K8sObject> objects,
                       ParseObjects(kAllReduceJob));
  K8sObject& job = objects.at(0);
  job["metadata"]["namespace"] = options.ns;
  job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
     ["containers"][0]["image"] =
         absl::StrCat(options.image_prefix, "coxswain:", options.tag);
  return PrintObjects(objects);
}

// Runs the job, shows what its ranks say, removes it.
bool AllReduceWorks(K8sOptions options) {
  if (options.ns.empty()) options.ns = "default";
  const absl::StatusOr<std::string> job = AllReduceJob(options);
  if (!job.ok()) return false;
  const auto kubectl = [&](std::vector<std::string> arguments,
                           const std::string& input, std::string* output) {
    arguments.insert(arguments.end(), {"-n", options.ns});
    return RunKubectl(arguments, input, output);
  };
  std::string said;
  kubectl({"delete", "jobset", kJobSet, "--ignore-not-found", "--timeout=60s"},
          "", &said);
  said.clear();
  if (kubectl({"create", "-f", "-"}, *job, &said) != 0) {
    std::printf("all-reduce the JobSet was refused\n%s", said.c_str());
    return false;
  }
  std::string state;
  for (int i = 0; i < 100 && state.empty() && !ShutdownRequested(); ++i) {
    SleepUnlessShutdown(absl::Seconds(2));
    kubectl(
        {"get", "jobset", kJobSet, "-o", "jsonpath={.status.terminalState}"},
        "", &state);
  }
  said.clear();
  kubectl({"logs", "-l", "cox.dev/role=doctor", "--tail=5"}, "", &said);
  const bool fine = state == "Completed";
  if (!fine) {
    std::printf("all-reduce %s\n", state.empty()
                                       ? "its pods did not end (quota? image?)"
                                       : "FAILED");
    kubectl({"get", "pods", "-l", "cox.dev/role=doctor", "-o", "wide"}, "",
            nullptr);
  }
  std::printf("%s", said.c_str());
  std::fflush(stdout);
  std::string ignored;
  kubectl({"delete", "jobset", kJobSet, "--ignore-not-found", "--wait=false"},
          "", &ignored);
  return fine;
}

}  // namespace

int K8sDoctor(const K8sOptions& options) {
  if (!ClusterAnswers()) {
    std::fprintf(stderr,
                 "cluster    no answer within 5 s through '%s' (is it "
                 "installed, does it know a cluster?)\n",
                 KubectlName().c_str());
    return kExitCheckFailed;
  }
  std::printf("cluster    answers\n");
  bool fine = true;
  const auto crd = [&](const char* name, const char* what, bool needed) {
    std::string output;
    const bool have =
        RunKubectl({"get", "crd", name, "--ignore-not-found", "-o", "name"}, "",
                   &output) == 0 &&
        !output.empty();
    std::printf("%-10s %s\n", what,
                have     ? "installed"
                : needed ? "MISSING, needed"
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
  RunKubectl(
      {"get", "pods", "-A", "-l", "app.kubernetes.io/name=coxswain", "-o",
       "jsonpath={range .items[?(@.metadata.deletionTimestamp)]}"
       "{.metadata.namespace}/{.metadata.name} on {.spec.nodeName} "
       "since {.metadata.deletionTimestamp}{\"\\n\"}{end}"},
      "", &text);
  if (!text.empty()) {
    std::printf(
        "terminating\n%s  if the node is lost: kubectl taint node NODE "
        "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute\n",
        text.c_str());
  }
  if (options.all_reduce) fine = AllReduceWorks(options) && fine;
  return fine ? kExitDone : kExitCheckFailed;
}

}  // namespace cox
