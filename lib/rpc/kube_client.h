#ifndef COX_LIB_RPC_KUBE_CLIENT_H_
#define COX_LIB_RPC_KUBE_CLIENT_H_

// The one call that a role makes at the API server of its cluster: changing
// annotations of pods in its own namespace, with the token of its service
// account (k8s/overlays/keda).

#include <map>
#include <string>

#include "absl/time/time.h"
#include "lib/base/status.h"

namespace cox {

struct KubeClientOptions {
  // Files `token`, `ca.crt` and `namespace`; the token is read again for each
  // call, because the kubelet renews it.
  std::string dir = "/var/run/secrets/kubernetes.io/serviceaccount";
  std::string host;  // "" = $KUBERNETES_SERVICE_HOST
  int port = 0;      // 0 = $KUBERNETES_SERVICE_PORT
  absl::Duration timeout = absl::Seconds(5);
};

// One thread at a time.
class KubeClient {
 public:
  // FAILED_PRECONDITION: this is no pod with a token.
  static absl::StatusOr<KubeClient> Create(KubeClientOptions options);

  // Merges the annotations into the pod's. NOT_FOUND: the pod is gone.
  // PERMISSION_DENIED: the account lacks the right to patch pods. UNAVAILABLE:
  // no answer, or a certificate that ca.crt does not vouch for.
  absl::Status Annotate(const std::string& pod,
                        const std::map<std::string, std::string>& annotations);

 private:
  explicit KubeClient(KubeClientOptions options)
      : options_(std::move(options)) {}
  KubeClientOptions options_;
  std::string ns_;
};

}  // namespace cox

#endif  // COX_LIB_RPC_KUBE_CLIENT_H_
