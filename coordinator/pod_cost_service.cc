#include "coordinator/pod_cost_service.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "lib/base/log.h"

namespace cox {

PodCostService::PodCostService(CoreHost* host, KubeClient client,
                               absl::Duration every)
    : host_(host), client_(std::move(client)), every_(every) {
  thread_ = Thread("pod-costs", [this] { Loop(); });
}

PodCostService::~PodCostService() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.NotifyAll();
  }
  thread_.Join();
}

void PodCostService::Loop() {
  while (true) {
    {
      MutexLock lock(&mutex_);
      wake_.WaitFor(mutex_, every_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        return stopping_;
      });
      if (stopping_) return;
    }
    Send();
    host_->Post([host = host_, mailbox = mailbox_] {
      std::map<std::string, int64_t> units = host->core().OpenUnitsOfActors();
      MutexLock lock(&mailbox->mutex);
      mailbox->open_units = std::move(units);
      mailbox->fresh = true;
    });
  }
}

void PodCostService::Send() {
  std::map<std::string, int64_t> units;
  {
    MutexLock lock(&mailbox_->mutex);
    if (!mailbox_->fresh) return;
    mailbox_->fresh = false;
    units = mailbox_->open_units;
  }
  for (const PodCost& cost : costs_.Due(units)) {
    const absl::Status status = client_.Annotate(
        cost.pod, {{kPodDeletionCost, absl::StrCat(cost.cost)}});
    if (status.ok()) {
      costs_.Sent(cost);
    } else if (status.code() != last_error_ && !absl::IsNotFound(status)) {
      LogWarning("pod deletion cost", {{"error", status.ToString()}});
    }
    last_error_ = status.code();
    // Nobody answers: the next round tries again.
    if (absl::IsUnavailable(status)) return;
  }
}

}  // namespace cox
