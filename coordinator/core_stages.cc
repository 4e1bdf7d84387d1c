// Stages and assignments, views, invariants.

#include <algorithm>
#include <cstring>
#include <utility>

#include "coordinator/core.h"
#include "lib/base/hash.h"
#include "lib/rpc/error_reason.h"

namespace cox {
namespace {

// Positive and a function of the content alone, so that it survives restarts.
int64_t SerialOf(const AssignmentData& a) {
  std::string text = absl::StrCat(static_cast<int>(a.kind), "|", a.stage, "|",
                                  a.stage_kind, "|", a.total_steps, "|");
  for (const auto& checkpoint : {a.policy, a.reward}) {
    absl::StrAppend(&text, checkpoint.has_value() ? checkpoint->directory : "",
                    "|");
  }
  for (const PublishOrderData& order : a.publish) {
    absl::StrAppend(&text, order.model, order.version.ToString(), order.folder,
                    "|");
  }
  for (const SourceData& source : a.models) {
    absl::StrAppend(&text, source.version.model, source.version.content_hash,
                    "|");
  }
  const std::string hash = Xxh3_128(text);
  uint64_t value = 0;
  std::memcpy(&value, hash.data(), sizeof(value));
  return static_cast<int64_t>(value >> 1) | 1;
}

}  // namespace

void CoordinatorCore::CheckStageComplete() {
  if (done() || stage_complete_sent_) {
    return;
  }
  const StagePlan& stage = plan_.stage(current_);
  bool complete = stage.total_steps > 0;
  if (stage.has_learner_steps()) {
    complete = complete && committed() == stage.total_steps &&
               checkpoints_.contains({current_, stage.total_steps});
  } else {
    for (int64_t step = 1; complete && step <= stage.total_steps; ++step) {
      complete = StepIsComplete(step);
    }
  }
  if (!complete) {
    return;
  }
  stage_complete_sent_ = true;
  Effect effect;
  effect.kind = Effect::Kind::kStageComplete;
  effect.stage = current_;
  effects_.push_back(std::move(effect));
}

void CoordinatorCore::FinishStage(int32_t stage, const MetricList& metrics,
                                  int64_t next_total_steps) {
  if (stage != current_ || done()) {
    return;
  }
  StageRow& row = stage_rows_[current_];
  row.stage = current_;
  row.state = "done";
  row.total_steps = plan_.stage(current_).total_steps;
  row.metrics = metrics;
  Record(row);
  AddEvent(
      "stage",
      absl::StrCat(StageKindName(plan_.stage(current_).kind).data(), " done"));
  ++current_;
  if (!done() && next_total_steps > 0) {
    plan_.SetTotalSteps(current_, next_total_steps);
  }
  EnterStage();
  DropSegments();
}

void CoordinatorCore::EnterStage() {
  submitted_.clear();
  submitted_in_step_.clear();
  history_.units = 0;
  batches_.clear();
  pending_.clear();
  leases_.clear();
  attempts_.clear();
  audit_.open.clear();
  audit_.since.clear();
  failing_.counts.clear();
  failing_.giving_up.clear();
  queue_.clear();
  unit_times_.clear();
  unit_time_next_ = 0;
  next_step_to_open_ = 1;
  planned_units_ = 0;
  stage_complete_sent_ = false;
  if (!done()) {
    StageRow row{current_, "running", plan_.stage(current_).total_steps, {}};
    stage_rows_[current_] = row;
    Record(row);
    OpenUnits();
    CheckStageComplete();
  }
  Changed();
}

void CoordinatorCore::SetStageState(const std::string& state) {
  if (done() || stage_rows_[current_].state == state) {
    return;
  }
  stage_rows_[current_].state = state;
  Record(stage_rows_[current_]);
  Changed();
}

std::vector<PublishOrderData> CoordinatorCore::PublishOrders() const {
  std::vector<PublishOrderData> orders;
  const StagePlan& stage = plan_.stage(current_);
  if (!stage.has_units()) {
    return orders;
  }
  auto add = [&](const std::string& model, int64_t step, int32_t from,
                 const std::string& folder) {
    PublishOrderData order;
    order.model = model;
    order.version = {current_, step};
    if (const VersionRow* known = FindVersion(model, order.version);
        known != nullptr) {
      order.content_hash = known->content_hash;
    }
    order.checkpoint = NewestCheckpoint(from);
    order.folder = folder;
    orders.push_back(std::move(order));
  };
  // The reference is the policy that ppo starts from; in eval the one before
  // any preference was learned, and the policy is the last one trained.
  const int32_t tuning = plan_.FirstTuningBefore(current_);
  const bool compares = stage.kind == StageKind::kEval && tuning >= 0;
  const int32_t before = plan_.PolicyStageBefore(compares ? tuning : current_);
  add("policy", 0, before, "policy");
  if (compares && stage.total_steps > 1) {
    const int32_t last = plan_.PolicyStageBefore(current_);
    const bool averaged =
        options_.eval_average && plan_.stage(last).kind == StageKind::kPpo;
    add("policy", 1, last, averaged ? "policy_ema" : "policy");
  }
  if (NeedsRewardModel()) {
    add("reward", 0, plan_.StageBefore(current_, StageKind::kRm), "reward");
  }
  if (NeedsReference()) {
    add("reference", 0, before, "policy");
  }
  return orders;
}

AssignmentData CoordinatorCore::LearnerAssignment() const {
  AssignmentData a;
  const StagePlan& stage = plan_.stage(current_);
  a.policy = NewestCheckpoint(plan_.PolicyStageBefore(current_));
  a.reward = NewestCheckpoint(plan_.StageBefore(current_, StageKind::kRm));
  a.publish = PublishOrders();
  if (stage.has_learner_steps()) {
    // A pause finds its border between stages where there are no units.
    a.kind = paused_ && !stage.has_units() && committed() == 0
                 ? AssignmentKind::kWait
                 : AssignmentKind::kTrain;
    a.resume = NewestCheckpoint(current_);
  } else {
    a.kind = AssignmentKind::kServe;
  }
  return a;
}

AssignmentData CoordinatorCore::RewardAssignment() const {
  AssignmentData a;
  const StagePlan& stage = plan_.stage(current_);
  if (!stage.has_units()) {
    return a;
  }
  std::vector<std::string> needed;
  if (NeedsRewardModel()) {
    needed.push_back("reward");
  }
  if (NeedsReference()) {
    needed.push_back("reference");
  }
  for (const std::string& model : needed) {
    const VersionRow* version = FindVersion(model, {current_, 0});
    if (version == nullptr || !HasLiveHolder(version->content_hash)) {
      a.models.clear();
      return a;
    }
    a.models.push_back(Source(*version, ""));
  }
  a.kind = AssignmentKind::kServe;
  return a;
}

absl::StatusOr<AssignmentData> CoordinatorCore::GetAssignment(
    const CoreCaller& caller) {
  COX_ASSIGN_OR_RETURN(Session * session, Find(caller));
  const std::string role = session->who.caller.role;
  AssignmentData a;
  if (!failure_.empty() || draining_) {
    a.kind = AssignmentKind::kStop;
  } else if (done()) {
    a.kind = AssignmentKind::kDone;
  } else if (role == "learner") {
    if (caller.generation != 0) {
      COX_RETURN_IF_ERROR(FindMember(caller).status());
    }
    a = LearnerAssignment();
  } else if (role == "reward") {
    a = RewardAssignment();
  } else {
    a.kind = plan_.stage(current_).has_units() ? AssignmentKind::kServe
                                               : AssignmentKind::kWait;
  }
  if (!done()) {
    const StagePlan& stage = plan_.stage(current_);
    a.stage = current_;
    a.stage_kind = std::string(StageKindName(stage.kind));
    a.last_committed = committed();
    a.total_steps = stage.total_steps;
  }
  a.serial = SerialOf(a);
  return a;
}

StatusView CoordinatorCore::Status() const {
  StatusView view;
  view.state = !failure_.empty() ? "failed"
               : done()          ? "done"
               : draining_       ? "draining"
               : paused_         ? "paused"
                                 : "running";
  view.failure = failure_;
  view.wanted = wanted_;
  view.failure_exit_code = failure_exit_code_;
  for (const auto& [id, row] : failed_) {
    view.failed_units.push_back(row);
  }
  view.current_stage = std::min(current_, plan_.num_stages() - 1);
  for (int32_t i = 0; i < plan_.num_stages(); ++i) {
    StageView stage;
    stage.kind = plan_.stage(i).kind;
    auto row = stage_rows_.find(i);
    stage.state = row == stage_rows_.end() ? "pending" : row->second.state;
    stage.step = LastStep(i);
    stage.total_steps = plan_.stage(i).total_steps;
    if (!plan_.stage(i).has_learner_steps()) {
      stage.step = stage.state == "done" ? stage.total_steps : 0;
      for (int64_t s = 1; i == current_ && s <= stage.total_steps; ++s) {
        stage.step += StepIsComplete(s) ? 1 : 0;
      }
    }
    if (!Steps(i).empty()) {
      view.last_metrics = Steps(i).rbegin()->second.metrics;
    }
    view.stages.push_back(std::move(stage));
  }
  for (const auto& [id, session] : sessions_) {
    view.sessions.push_back(
        {session.who.caller.role, session.who.caller.name, session.who.address,
         session.state, session.state_ms, session.waiting_for,
         now_ - session.last_contact, session.alive, session.rss_bytes});
  }
  view.units_pending = static_cast<int64_t>(pending_.size());
  view.units_leased = static_cast<int64_t>(leases_.size());
  if (!done() && plan_.stage(current_).has_units()) {
    view.units_submitted =
        static_cast<int64_t>(submitted_.size()) + history_.units -
        (plan_.stage(current_).has_learner_steps()
             ? committed() * plan_.stage(current_).units_per_step()
             : 0);
  }
  return view;
}

std::vector<WaitView> CoordinatorCore::Waits() const {
  std::vector<WaitView> waits;
  for (const auto& [id, session] : sessions_) {
    if (!session.waiting_for.empty()) {
      waits.push_back({session.who.caller.name, session.waiting_for,
                       session.state, absl::Milliseconds(session.state_ms)});
    }
    if (!session.alive) {
      waits.push_back({"coordinator", session.who.caller.name, "a heartbeat",
                       now_ - session.last_contact});
    }
  }
  for (const auto& [key, lease] : leases_) {
    auto session = sessions_.find(lease.session);
    waits.push_back(
        {"coordinator",
         session == sessions_.end() ? "?" : session->second.who.caller.name,
         absl::StrCat("unit ",
                      UnitId{current_, key.first, key.second}.ToString()),
         now_ - lease.granted});
  }
  for (int32_t rank = 0; !joiners_.empty() && rank < options_.world_size;
       ++rank) {
    if (!joiners_.contains(rank)) {
      waits.push_back({"learner group", absl::StrCat("rank ", rank),
                       "JoinGroup", absl::ZeroDuration()});
    }
  }
  if (!done() && plan_.stage(current_).has_units() && !pending_.empty() &&
      !MakeScorePlan().has_value()) {
    waits.push_back({"actors", "reward",
                     "a reward process that holds the models",
                     absl::ZeroDuration()});
  }
  return waits;
}

absl::Status CoordinatorCore::CheckInvariants() const {
  auto broken = [](const std::string& what) {
    return absl::DataLossError(absl::StrCat("invariant: ", what));
  };
  Generation last_generation;
  for (const auto& [stage, steps] : steps_) {
    int64_t expected = ForgottenUpTo(stage);
    for (const auto& [step, row] : steps) {
      if (step > ForgottenUpTo(stage) && step != ++expected) {
        return broken("steps are not contiguous");
      }
      if (row.generation < last_generation) {
        return broken("a generation decreased");
      }
      last_generation = row.generation;
    }
  }
  if (generation_ < last_generation) {
    return broken("the generation is behind the steps");
  }
  if (done() || !plan_.stage(current_).has_units()) {
    return absl::OkStatus();
  }
  const StagePlan& stage = plan_.stage(current_);
  const bool streaming = plan_.IsStreaming(current_);
  const size_t open = pending_.size() + leases_.size() + submitted_.size() +
                      failing_.giving_up.size();
  if (static_cast<int64_t>(open) + history_.units != planned_units_) {
    return broken(absl::StrCat("planned ", planned_units_, " units, forgotten ",
                               history_.units, " + pending ", pending_.size(),
                               " + leased ", leases_.size(), " + submitted ",
                               submitted_.size()));
  }
  std::set<UnitKey> seen;
  for (int64_t step = ForgottenUpTo(current_) + 1;
       stage.has_learner_steps() && step <= committed(); ++step) {
    const std::vector<UnitRow> units = UnitsOfStep(current_, step);
    if (static_cast<int32_t>(units.size()) != stage.units_per_step()) {
      return broken(
          absl::StrCat("step ", step, " has ", units.size(), " units"));
    }
    for (const UnitRow& unit : units) {
      if (!seen.insert({unit.id.step, unit.id.index}).second) {
        return broken(
            absl::StrCat("unit ", unit.id.ToString(), " is in two steps"));
      }
      if (unit.version_step > step - 1 ||
          (streaming && step - 1 - unit.version_step > plan_.schedule().eta)) {
        return broken(absl::StrCat("unit ", unit.id.ToString(),
                                   " is too new or too stale for step ", step));
      }
    }
  }
  for (const auto& [key, unit] : submitted_) {
    if (!streaming &&
        unit.version_step != plan_.VersionFor(current_, key.first).step) {
      return broken(absl::StrCat("unit ", unit.id.ToString(), " has version ",
                                 unit.version_step));
    }
  }
  return absl::OkStatus();
}

}  // namespace cox
