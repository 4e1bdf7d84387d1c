#ifndef COX_COORDINATOR_POD_COST_SERVICE_H_
#define COX_COORDINATOR_POD_COST_SERVICE_H_

// Tells the cluster every second or so which actor pods are idle
// (coordinator/pod_costs.h). Failures are logged, once per kind, and cost
// nothing but that: a busy actor that is taken gives its units back.

#include <memory>

#include "absl/time/time.h"
#include "coordinator/core_host.h"
#include "coordinator/pod_costs.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"
#include "lib/rpc/kube_client.h"

namespace cox {

class PodCostService {
 public:
  // `host` must outlive it.
  PodCostService(CoreHost* host, KubeClient client, absl::Duration every);
  ~PodCostService();
  PodCostService(const PodCostService&) = delete;
  PodCostService& operator=(const PodCostService&) = delete;

 private:
  // Survives the service: the core thread may still have a task with it.
  struct Mailbox {
    Mutex mutex;
    std::map<std::string, int64_t> open_units ABSL_GUARDED_BY(mutex);
    bool fresh ABSL_GUARDED_BY(mutex) = false;
  };

  void Loop();
  void Send();

  CoreHost* const host_;
  KubeClient client_;
  const absl::Duration every_;
  PodCosts costs_;
  absl::StatusCode last_error_ = absl::StatusCode::kOk;
  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  Mutex mutex_;
  CondVar wake_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  Thread thread_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_POD_COST_SERVICE_H_
