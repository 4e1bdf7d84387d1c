// How the learner ranks of a generation meet. The coordinator hands rank 0's
// offer to all: an address that Gloo's store listens on, or NCCL's unique id.
// Either belongs to one process of rank 0, and what the ranks then compare
// names run and generation, so a stale rank meets nobody.
//
// Actors are never in that group: weights reach them in groups of their own
// (lib/rpc/weight_groups.h).

#include <utility>

#include "learner/learner_service.h"
#include "learner/train_loop_service.h"
#include "lib/comm/nccl.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr absl::Duration kPoll = absl::Seconds(10);

bool UsesNccl(const v1::RoleSettings& roles) {
  return roles.collective() == "nccl" ||
         (roles.collective() == "auto" && roles.device() == "cuda");
}

}  // namespace

bool Learner::SendsOverNccl() const {
  return options_.rank == 0 &&
         context_.config.roles().weight_transport() == "nccl";
}

absl::Status Learner::JoinGroup() {
  heartbeater_->SetState("joining the learner group", "other learner ranks");
  const bool nccl =
      options_.world_size > 1 && UsesNccl(context_.config.roles());
  FreePort port;
  std::string offer;
  if (nccl) {
    // Every rank finds out what it lacks before the others wait for it.
    COX_RETURN_IF_ERROR(CheckNccl());
    if (options_.rank == 0) {
      COX_ASSIGN_OR_RETURN(const NcclUniqueId id, NewNcclId());
      offer = NcclIdText(id);
    }
  } else if (options_.world_size > 1) {
    COX_ASSIGN_OR_RETURN(const int number,
                         port.Reserve(options_.rendezvous_host));
    offer = absl::StrCat(options_.rendezvous_host, ":", number);
  }
  v1::JoinGroupResponse joined;
  while (!joined.ready()) {
    if (stop_.HasBeenNotified()) {
      return absl::CancelledError("stopped before the group was complete");
    }
    COX_ASSIGN_OR_RETURN(
        joined,
        client_.JoinGroup(options_.rank, options_.world_size, offer, kPoll));
  }
  generation_ = joined.generation();
  port.Release();
  COX_ASSIGN_OR_RETURN(group_, Meet(joined.rendezvous()));
  context_.group = group_.get();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Collective>> Learner::Meet(
    const std::string& rendezvous) {
  if (options_.world_size == 1) return MakeSingleRank();
  const v1::LimitSettings& limits = context_.config.limits();
  // The others wait for rank 0 while it waits for the coordinator.
  const absl::Duration timeout = absl::Seconds(limits.collective_timeout_s() +
                                               limits.coordinator_patience_s());
  const std::string group =
      absl::StrCat(client_.caller().run_id, "/g", generation_);
  if (UsesNccl(context_.config.roles())) {
    NcclOptions nccl;
    COX_ASSIGN_OR_RETURN(nccl.id, ParseNcclId(rendezvous));
    nccl.rank = options_.rank;
    nccl.world_size = options_.world_size;
    nccl.group = group;
    nccl.timeout = timeout;
    COX_ASSIGN_OR_RETURN(std::unique_ptr<NcclCollective> made, MakeNccl(nccl));
    return std::unique_ptr<Collective>(std::move(made));
  }
  const size_t colon = rendezvous.rfind(':');
  int number = 0;
  if (colon == std::string::npos ||
      !ParsePortNumber(rendezvous.substr(colon + 1), &number)) {
    return absl::InvalidArgumentError(
        absl::StrCat("JoinGroup: bad rendezvous '", rendezvous, "'"));
  }
  GlooOptions gloo;
  gloo.host = rendezvous.substr(0, colon);
  gloo.port = number;
  gloo.rank = options_.rank;
  gloo.world_size = options_.world_size;
  gloo.prefix = group;
  gloo.interface_address = options_.rendezvous_host;
  gloo.timeout = timeout;
  return options_.make_group(gloo);
}

}  // namespace cox
