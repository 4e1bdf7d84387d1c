#include "lib/rpc/weight_groups.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include "lib/base/log.h"
#include "lib/comm/weight_group.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/server.h"
#include "lib/rpc/status_convert.h"
#include "lib/rpc/trace_metadata.h"

namespace cox {
namespace {

constexpr absl::Duration kLongestPause = absl::Minutes(10);
// A caller whose time is over sooner may be gone before it has the answer, and
// would then be missed by all others of its group.
constexpr absl::Duration kLeastTimeLeft = absl::Milliseconds(300);

absl::Status Leaving() {
  return absl::UnavailableError("weight group: the publisher is leaving");
}

absl::Status Pausing(int failures, absl::Duration pause) {
  return absl::UnavailableError(absl::StrCat(
      "weight group: the last ", failures, " failed, the next may form in ",
      absl::FormatDuration(pause)));
}

}  // namespace

// One waiting Join. Deletes itself when gRPC is done with it.
class WeightGroups::Call final : public grpc::ServerUnaryReactor {
 public:
  Call(WeightGroups* groups, grpc::CallbackServerContext* context,
       cox::v1::JoinWeightGroupResponse* response)
      : groups_(groups),
        response_(response),
        expires_(Clock::Real().Now() + TimeLeft(*context)) {}

  void set_member(uint64_t member) { member_ = member; }
  MonoTime expires() const { return expires_; }
  cox::v1::JoinWeightGroupResponse* response() { return response_; }
  void End(const absl::Status& status) { Finish(ToGrpc(status)); }

  // After the handler has returned, so `member_` is set.
  void OnCancel() override { groups_->Cancelled(member_); }
  void OnDone() override { delete this; }

 private:
  WeightGroups* const groups_;
  cox::v1::JoinWeightGroupResponse* const response_;
  const MonoTime expires_;
  uint64_t member_ = 0;
};

void WeightGroups::Open(WeightGroupsOptions options) {
  options_ = std::move(options);
  {
    MutexLock lock(&mutex_);
    book_ = std::make_unique<WeightGroupBook>(options_.window);
    open_ = true;
  }
  worker_ = Thread("weight-groups", [this] { Work(); });
}

void WeightGroups::Close() {
  stop_.Notify();
  {
    MutexLock lock(&mutex_);
    open_ = false;
  }
  RefuseWaiting(Leaving());
  worker_.Join();
}

void WeightGroups::RefuseWaiting(const absl::Status& status) {
  std::map<uint64_t, Call*> waiting;
  {
    MutexLock lock(&mutex_);
    waiting.swap(waiting_);
    for (const auto& [member, call] : waiting) book_->Leave(member);
    ++changes_;
    changed_.NotifyAll();
  }
  for (const auto& [member, call] : waiting) call->End(status);
}

absl::Status WeightGroups::Admit(
    const grpc::CallbackServerContext& context,
    const cox::v1::JoinWeightGroupRequest& request) {
  {
    MutexLock lock(&mutex_);
    if (!open_) {
      return absl::FailedPreconditionError(
          "weight group: none are formed here");
    }
    const absl::Duration pause = paused_until_ - Clock::Real().Now();
    if (pause > absl::ZeroDuration()) {
      return Pausing(failures_in_a_row_, pause);
    }
  }
  COX_RETURN_IF_ERROR(CheckCall(context, request.caller(), options_.run_id));
  if (request.generation() != options_.generation) {
    return absl::FailedPreconditionError(
        absl::StrCat("weight group: generation ", options_.generation,
                     " publishes here, asked for ", request.generation()));
  }
  if (store_->Get(request.content_hash()) == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("version ", request.content_hash(), " is not held"));
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* WeightGroups::Join(
    grpc::CallbackServerContext* context,
    const cox::v1::JoinWeightGroupRequest* request,
    cox::v1::JoinWeightGroupResponse* response) {
  const absl::Status admitted = Admit(*context, *request);
  auto* call = new Call(this, context, response);
  if (!admitted.ok()) {
    call->End(admitted);
    return call;
  }
  bool waits = false;
  {
    MutexLock lock(&mutex_);
    waits = open_;
    if (waits) {
      const uint64_t member = next_member_++;
      call->set_member(member);
      waiting_[member] = call;
      book_->Join(Clock::Real().Now(), request->content_hash(), member,
                  request->actors());
      ++changes_;
      changed_.NotifyAll();
    }
  }
  if (!waits) call->End(Leaving());
  return call;
}

void WeightGroups::Cancelled(uint64_t member) {
  Call* call = nullptr;
  {
    MutexLock lock(&mutex_);
    const auto node = waiting_.extract(member);
    if (node.empty()) return;
    call = node.mapped();
    book_->Leave(member);
  }
  call->End(absl::CancelledError("weight group: the caller is gone"));
}

void WeightGroups::Work() {
  while (true) {
    std::optional<WeightGroupBook::Group> group;
    std::vector<Call*> members;
    {
      MutexLock lock(&mutex_);
      while (open_ && !(group = book_->Take(Clock::Real().Now()))) {
        const std::optional<MonoTime> due = book_->NextDue();
        const absl::Duration wait =
            due.has_value() ? *due - Clock::Real().Now() : absl::Hours(1);
        const uint64_t seen = changes_;
        changed_.WaitFor(mutex_, wait,
                         [this, seen]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                           return changes_ != seen;
                         });
      }
      if (!open_) return;
      for (const uint64_t member : group->members) {
        members.push_back(waiting_.extract(member).mapped());
      }
    }
    Form(*group, std::move(members));
  }
}

// Until the group has ended. Ends every call of `members`.
void WeightGroups::Form(const WeightGroupBook::Group& group,
                        std::vector<Call*> members) {
  const auto refuse = [&](const absl::Status& status) {
    for (Call* call : members) call->End(status);
  };
  const MonoTime start = Clock::Real().Now();
  std::erase_if(members, [&](Call* call) {
    if (call->expires() - start > kLeastTimeLeft) return false;
    call->End(absl::UnavailableError("weight group: formed too late"));
    return true;
  });
  if (members.empty()) return;
  const std::shared_ptr<const Snapshot> snapshot =
      store_->Get(group.content_hash);
  if (snapshot == nullptr) {
    return refuse(absl::NotFoundError(
        absl::StrCat("version ", group.content_hash, " is not held any more")));
  }
  const absl::StatusOr<NcclUniqueId> id = NewNcclId();
  if (!id.ok()) return refuse(absl::UnavailableError(id.status().ToString()));
  WeightGroupOptions options;
  options.id = *id;
  options.rank = 0;
  options.world_size = static_cast<int>(members.size()) + 1;
  options.name = WeightGroupName(options_.run_id, options_.generation,
                                 group.content_hash, ++serial_);
  options.timeout = options_.timeout;
  options.stop = &stop_;
  for (size_t i = 0; i < members.size(); ++i) {
    cox::v1::JoinWeightGroupResponse* response = members[i]->response();
    response->set_id(id->bytes, sizeof(id->bytes));
    response->set_rank(static_cast<int32_t>(i) + 1);
    response->set_ranks(options.world_size);
    response->set_serial(serial_);
    members[i]->End(absl::OkStatus());
  }
  const absl::Status status = SendWeights(options, *snapshot);
  const double seconds = absl::ToDoubleSeconds(Clock::Real().Now() - start);
  if (status.ok()) {
    ++sent_;
    MutexLock lock(&mutex_);
    failures_in_a_row_ = 0;
  } else if (!stop_.HasBeenNotified()) {
    ++failed_;
    const absl::Duration pause = PauseAfterFailure();
    LogWarning("weight group failed, its members fetch over gRPC",
               {Field("members", options.world_size - 1),
                Field("seconds", seconds),
                {"error", status.ToString()},
                {"pause", absl::FormatDuration(pause)}});
    return;
  }
  LogInfo("weight group", {Field("members", options.world_size - 1),
                           Field("seconds", seconds),
                           {"hash", group.content_hash}});
}

absl::Duration WeightGroups::PauseAfterFailure() {
  absl::Duration pause;
  int failures = 0;
  {
    MutexLock lock(&mutex_);
    failures = ++failures_in_a_row_;
    // One may be an actor that died; the next has others.
    if (failures < 2) return absl::ZeroDuration();
    pause = std::min(kLongestPause,
                     options_.timeout * (1 << std::min(failures - 1, 10)));
    paused_until_ = Clock::Real().Now() + pause;
  }
  RefuseWaiting(Pausing(failures, pause));
  return pause;
}

absl::StatusOr<std::shared_ptr<const Snapshot>> FetchOverGroup(
    const VersionSource& source, const GroupFetchOptions& options) {
  COX_ASSIGN_OR_RETURN(const Manifest manifest,
                       Manifest::FromCanonicalText(source.manifest));
  COX_ASSIGN_OR_RETURN(const auto channel, MakeChannel(source.group.address));
  cox::v1::JoinWeightGroupRequest request;
  ToProto(options.caller, request.mutable_caller());
  request.set_content_hash(source.content_hash);
  request.set_generation(source.group.generation);
  request.set_actors(source.group.actors);
  cox::v1::JoinWeightGroupResponse response;
  grpc::ClientContext context;
  context.set_deadline(
      std::chrono::system_clock::now() +
      absl::ToChronoMicroseconds(LimitOf("WeightGroupService.Join").deadline));
  AddTraceparent(&context);
  COX_RETURN_IF_ERROR(
      Annotate(FromGrpc(cox::v1::WeightGroupService::NewStub(channel)->Join(
                   &context, request, &response)),
               source.group.address));
  WeightGroupOptions group;
  if (response.id().size() != sizeof(group.id.bytes) || response.rank() < 1 ||
      response.rank() >= response.ranks()) {
    return absl::DataLossError(
        absl::StrCat("weight group: rank ", response.rank(), " of ",
                     response.ranks(), " with an id of ", response.id().size(),
                     " bytes from ", source.group.address));
  }
  std::memcpy(group.id.bytes, response.id().data(), sizeof(group.id.bytes));
  group.rank = response.rank();
  group.world_size = response.ranks();
  // Out of what this process wants, not of what it was told.
  group.name = WeightGroupName(options.caller.run_id, source.group.generation,
                               source.content_hash, response.serial());
  group.timeout = options.timeout;
  group.stop = options.stop;
  return ReceiveWeights(group, manifest, source.content_hash,
                        options.max_bytes);
}

}  // namespace cox
