#include "lib/rpc/limits.h"

#include "lib/base/status.h"

namespace cox {
namespace {

constexpr bool kRetry = true;
constexpr bool kOnce = false;

// absl::Seconds is constexpr, so the table needs no initialisation at start.
constexpr RpcLimit kLimits[] = {
    {"RunService.Register", absl::Seconds(10), kRetry},
    {"RunService.Heartbeat", absl::Seconds(2), kRetry},
    {"RunService.GetAssignment", absl::Seconds(5), kRetry},
    {"RunService.JoinGroup", absl::Seconds(5), kRetry},
    {"RunService.Drain", absl::Seconds(5), kRetry},
    {"RunService.FetchFile", absl::Seconds(60), kRetry},
    {"RolloutService.LeaseUnits", absl::Seconds(5), kRetry},
    {"RolloutService.RenewLease", absl::Seconds(5), kRetry},
    {"RolloutService.SubmitUnit", absl::Seconds(10), kRetry},
    {"RolloutService.ReturnUnits", absl::Seconds(5), kRetry},
    {"ExperienceService.TakeBatch", absl::Seconds(30), kRetry},
    {"ExperienceService.CommitStep", absl::Seconds(30), kRetry},
    {"VersionService.PublishVersion", absl::Seconds(10), kRetry},
    {"VersionService.WatchVersions", absl::Hours(1), kRetry},
    {"VersionService.ReportHeld", absl::Seconds(5), kRetry},
    {"CheckpointService.BeginCheckpoint", absl::Seconds(10), kRetry},
    {"CheckpointService.CommitCheckpoint", absl::Seconds(30), kRetry},
    {"CheckpointService.LatestCheckpoint", absl::Seconds(10), kRetry},
    {"WeightService.Fetch", absl::Seconds(10), kRetry},
    {"WeightGroupService.Join", absl::Seconds(2), kOnce},
    {"RewardService.Score", absl::Seconds(60), kRetry},
    {"ReferenceService.Logprobs", absl::Seconds(60), kRetry},
    {"MonitorService.Status", absl::Seconds(5), kRetry},
    {"MonitorService.Metrics", absl::Seconds(10), kRetry},
    {"MonitorService.Samples", absl::Seconds(10), kRetry},
    {"MonitorService.Events", absl::Seconds(10), kRetry},
    {"MonitorService.Stuck", absl::Seconds(5), kRetry},
    // An operator's order is repeated by the operator, not by the client.
    {"ControlService.Pause", absl::Seconds(10), kOnce},
    {"ControlService.Resume", absl::Seconds(10), kOnce},
    {"ControlService.Stop", absl::Seconds(10), kOnce},
    {"ControlService.Scale", absl::Seconds(10), kOnce},
    {"ControlService.SetKlCoef", absl::Seconds(10), kOnce},
};

}  // namespace

std::span<const RpcLimit> RpcLimits() { return kLimits; }

const RpcLimit& LimitOf(std::string_view method) {
  for (const RpcLimit& limit : kLimits) {
    if (limit.method == method) return limit;
  }
  COX_CHECK(false && "RPC without a row in the table of limits");
  return kLimits[0];
}

absl::Duration TransferTime(uint64_t bytes) {
  return absl::Seconds(static_cast<double>(bytes) / 1e6);
}

}  // namespace cox
