#ifndef COX_CLI_K8S_RENDER_H_
#define COX_CLI_K8S_RENDER_H_

// run.yaml -> the objects that launch it. The templates are the files of
// k8s/base, built into the binary, so that `kubectl apply -k` and
// `cox k8s render` cannot drift apart; replicas, ranks, devices and the
// configuration come from run.yaml.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/k8s_yaml.h"
#include "cox/v1/run_config.pb.h"
#include "lib/base/status.h"

namespace cox {

// (file name, text) of k8s/base.
const std::vector<std::pair<std::string_view, std::string_view>>&
BaseManifests();

struct RenderOptions {
  std::string run_yaml;                // text of the file
  std::vector<std::string> overrides;  // handed to the coordinator
  std::string ns;                      // "" = cox-<run>
  std::string image_prefix;            // "registry.example/team/"
  std::string tag = "dev";
  std::string certs_dir;     // of `cox certs init`; "" = Secrets exist already
  std::string host_volumes;  // folder on the node; "" = the storage class's
};

// INVALID_ARGUMENT: a name that is no DNS label, checkpoints outside of
// /checkpoints, files outside of /data, ports or addresses in the run.
absl::StatusOr<std::vector<K8sObject>> RenderRun(
    const cox::v1::RunConfig& config, const RenderOptions& options);

// What can be checked without a cluster, one line per problem: objects named
// twice, selectors that match no pod template, references to accounts,
// volumes, secrets, config maps and ports that do not exist, a world size that
// is not the number of pods, containers without the hardening of
// docs/kubernetes.md.
std::vector<std::string> CheckObjects(const std::vector<K8sObject>& objects);

// The Job inside each JobSet, as a Job: the API server validates it only then.
std::vector<K8sObject> EmbeddedJobs(const std::vector<K8sObject>& objects);

}  // namespace cox

#endif  // COX_CLI_K8S_RENDER_H_
