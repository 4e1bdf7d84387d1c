// The part of actor_service.cc that leaves, and what it counted.

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "actor/actor_service.h"
#include "lib/base/log.h"

namespace cox {
namespace {

constexpr absl::Duration kDrainGrace = absl::Seconds(2);

}  // namespace

void Actor::Leave() {
  {
    MutexLock lock(&mutex_);
    if (!stopped_at_.has_value()) stopped_at_ = Clock::Real().Now();
    closing_ = true;
    ++changes_;
    changed_.NotifyAll();
  }
  scorer_.Join();  // submits what is generated, within options_.flush
  stop_.Notify();
  client_.StopWaiting();
  renewer_.Join();
  assignment_.Join();
  heartbeater_.reset();
  std::vector<UnitId> left;
  {
    MutexLock lock(&mutex_);
    left = core_.Units();
  }
  absl::Status told;
  if (!left.empty()) told = client_.ReturnUnits(left);
  if (engine_ != nullptr && told.ok()) told = client_.Drain("leaving");
  if (!told.ok()) {
    LogInfo("coordinator was not told", {{"error", told.ToString()}});
  }
  if (server_ != nullptr) server_->Shutdown(kDrainGrace);
  http_.reset();
}

std::string Actor::Metrics() const {
  std::string text;
  const auto add = [&text](std::string_view name, uint64_t value) {
    const std::string n(name);
    absl::StrAppend(&text, "# TYPE ", n, " counter\n", n, " ", value, "\n");
  };
  add("cox_actor_units_submitted_total", units_submitted_);
  add("cox_actor_units_given_back_total", units_given_back_);
  add("cox_actor_tokens_generated_total", tokens_generated_);
  add("cox_actor_weight_swaps_total", swaps_);
  add("cox_actor_weights_over_nccl_total", fetched_over_nccl_);
  add("cox_actor_weights_over_grpc_total", fetched_over_grpc_);
  absl::StrAppend(&text, "# TYPE cox_resident_bytes gauge\ncox_resident_bytes ",
                  ResidentBytes(), "\n");
  return text;
}

}  // namespace cox
