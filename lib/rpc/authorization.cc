#include "lib/rpc/authorization.h"

#include <algorithm>
#include <array>

namespace cox {
namespace {

enum RoleBits : unsigned {
  kActor = 1,
  kReward = 2,
  kLearner = 4,
  kOperator = 8,
  kViewer = 16,
  kScaler = 32,
  kCoordinator = 64,
};
constexpr unsigned kWorkers = kActor | kReward | kLearner;
constexpr unsigned kAll =
    kWorkers | kOperator | kViewer | kScaler | kCoordinator;

constexpr std::array<std::string_view, 7> kRoles = {
    "actor",  "reward", "learner",    "operator",
    "viewer", "scaler", "coordinator"};

struct Permission {
  std::string_view method;
  unsigned roles;
};
constexpr Permission kPermissions[] = {
    {"RunService.Register", kWorkers},
    {"RunService.Heartbeat", kWorkers},
    {"RunService.GetAssignment", kWorkers},
    {"RunService.JoinGroup", kLearner},
    {"RunService.Drain", kWorkers},
    {"RunService.FetchFile", kWorkers | kOperator},
    {"RolloutService.LeaseUnits", kActor},
    {"RolloutService.RenewLease", kActor},
    {"RolloutService.SubmitUnit", kActor},
    {"RolloutService.ReturnUnits", kActor},
    {"ExperienceService.TakeBatch", kLearner},
    {"ExperienceService.CommitStep", kLearner},
    {"CheckpointService.BeginCheckpoint", kLearner},
    {"CheckpointService.CommitCheckpoint", kLearner},
    {"CheckpointService.LatestCheckpoint", kLearner | kOperator},
    {"VersionService.PublishVersion", kLearner},
    {"VersionService.WatchVersions", kWorkers},
    {"VersionService.ReportHeld", kWorkers},
    {"WeightService.Fetch", kWorkers},
    {"WeightGroupService.Join", kActor},
    {"RewardService.Score", kActor | kLearner},
    {"ReferenceService.Logprobs", kActor | kLearner},
    {"MonitorService.Status", kLearner | kOperator | kViewer},
    {"MonitorService.Metrics", kLearner | kOperator | kViewer},
    {"MonitorService.Samples", kOperator},
    {"MonitorService.Events", kLearner | kOperator | kViewer},
    {"MonitorService.Stuck", kLearner | kOperator | kViewer},
    {"ControlService.Pause", kOperator},
    {"ControlService.Resume", kOperator},
    {"ControlService.Stop", kOperator},
    {"ControlService.Scale", kOperator},
    {"ControlService.SetKlCoef", kOperator},
    {"ExternalScaler.IsActive", kScaler},
    {"ExternalScaler.StreamIsActive", kScaler},
    {"ExternalScaler.GetMetricSpec", kScaler},
    {"ExternalScaler.StreamMetricSpec", kScaler},
    {"ExternalScaler.GetMetrics", kScaler},
    {"Health.Check", kAll},
    {"Health.Watch", kAll},
};

unsigned RoleBit(std::string_view role) {
  const auto at = std::find(kRoles.begin(), kRoles.end(), role);
  return at == kRoles.end() ? 0u : 1u << (at - kRoles.begin());
}

}  // namespace

std::span<const std::string_view> Roles() { return kRoles; }

bool RoleMay(std::string_view role, std::string_view method) {
  const unsigned bit = RoleBit(role);
  return std::any_of(std::begin(kPermissions), std::end(kPermissions),
                     [&](const Permission& p) {
                       return p.method == method && (p.roles & bit) != 0;
                     });
}

std::string MethodOfPath(std::string_view path) {
  if (path.empty() || path.front() != '/') return "";
  const size_t slash = path.find('/', 1);
  if (slash == std::string_view::npos || slash + 1 == path.size() ||
      path.find('/', slash + 1) != std::string_view::npos) {
    return "";
  }
  std::string_view service = path.substr(1, slash - 1);
  // Only our package, KEDA's and gRPC's health service: a foreign service of
  // the same short name must not inherit a row.
  constexpr std::string_view kPackages[] = {"cox.v1.", "externalscaler.",
                                            "grpc.health.v1."};
  for (const std::string_view package : kPackages) {
    if (!service.starts_with(package)) continue;
    service.remove_prefix(package.size());
    if (service.empty() || service.find('.') != std::string_view::npos) {
      return "";
    }
    return std::string(service) + "." + std::string(path.substr(slash + 1));
  }
  return "";
}

}  // namespace cox
