// How an actor gets a version that it does not hold.

#include <algorithm>

#include "actor/actor_service.h"
#include "lib/base/log.h"
#include "lib/metrics/trace_recorder.h"
#include "lib/rpc/weight_fetcher.h"
#include "lib/rpc/weight_groups.h"

namespace cox {
namespace {

// Without a byte of the weights for this long, counted between streams.
constexpr absl::Duration kFetchPatience = absl::Milliseconds(500);

}  // namespace

absl::StatusOr<std::shared_ptr<const Snapshot>> Actor::FetchWeights(
    const VersionSource& source) {
  const std::string what = absl::StrCat("policy ", source.version.ToString());
  const TraceScope scope("broadcast",
                         StepTrace(source.version.stage, source.version.step),
                         source.version.ToString());
  if (weight_group_timeout_.has_value() && !source.group.address.empty()) {
    heartbeater_->SetState(absl::StrCat("receiving ", what, " over NCCL"),
                           source.group.address);
    auto received = FetchOverGroup(source, {.caller = client_.caller(),
                                            .timeout = *weight_group_timeout_,
                                            .stop = &stop_});
    if (received.ok()) {
      ++fetched_over_nccl_;
      return received;
    }
    if (stop_.HasBeenNotified()) return absl::CancelledError("leaving");
    LogWarning("no weights over NCCL, fetching over gRPC",
               {{"version", source.version.ToString()},
                {"error", received.status().ToString()}});
  }
  heartbeater_->SetState(
      absl::StrCat("fetching ", what),
      source.addresses.empty() ? "nobody" : source.addresses.front());
  FetchOptions fetch;
  fetch.caller = client_.caller();
  // A new lease names new sources; nothing was generated yet.
  fetch.patience = std::min(options_.score_patience, kFetchPatience);
  fetch.sleep = [this](absl::Duration d) { return stop_.WaitFor(d); };
  auto fetched = FetchSnapshot(source, fetch);
  if (fetched.ok()) ++fetched_over_grpc_;
  return fetched;
}

}  // namespace cox
