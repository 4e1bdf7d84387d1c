#ifndef COX_CLI_K8S_COMMAND_H_
#define COX_CLI_K8S_COMMAND_H_

// `cox k8s`: from run.yaml to a cluster and back. Talks to the cluster through
// kubectl ($COX_KUBECTL names another one), never through `kubectl exec`.

#include <string>
#include <vector>

namespace cox {

struct K8sOptions {
  std::string file;  // run.yaml; k8s check: objects, "-" = stdin
  std::vector<std::string> overrides;
  std::string ns;  // "" = cox-<run>
  std::string image_prefix;
  std::string tag = "dev";
  std::string certs_dir;
  std::string host_volumes;
  std::string role;         // logs
  bool follow = false;      // logs -f
  bool offline = false;     // check: no cluster
  bool all_reduce = false;  // doctor: run the two pods
};

// Each returns the exit code.
int K8sRender(const K8sOptions& options);
int K8sCheck(const K8sOptions& options);
// Applies, then shows the learners' state until the run has ended; Ctrl-C
// detaches and leaves the run alone. 0 completed, 43 failed.
int K8sRun(const K8sOptions& options);
int K8sStatus(const K8sOptions& options);
int K8sLogs(const K8sOptions& options);
// What the cluster has and lacks; with all_reduce also whether two pods in
// namespace `ns` (default: default) can sum their data. 1 when something needed
// is missing.
int K8sDoctor(const K8sOptions& options);

}  // namespace cox

#endif  // COX_CLI_K8S_COMMAND_H_
