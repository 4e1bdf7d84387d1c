// Units: opening, leasing, submitting, batches.

#include <algorithm>
#include <utility>

#include "coordinator/core.h"
#include "lib/algo/staleness.h"

namespace cox {
namespace {

constexpr size_t kUnitTimes = 64;  // remembered to size leases

}  // namespace

const VersionRow* CoordinatorCore::FindVersion(const std::string& model,
                                               PolicyVersion version) const {
  auto found = versions_.find({model, version});
  return found == versions_.end() ? nullptr : &found->second;
}

const VersionRow* CoordinatorCore::FindPolicyByHash(
    const std::string& hash) const {
  const VersionRow* newest = nullptr;
  for (auto it = versions_.lower_bound({"policy", {current_, 0}});
       it != versions_.end() && it->first.first == "policy" &&
       it->first.second.stage == current_;
       ++it) {
    if (it->second.content_hash == hash) {
      newest = &it->second;
    }
  }
  return newest;
}

void CoordinatorCore::OpenUnits() {
  if (done() || plan_.IsStreaming(current_)) {
    return;
  }
  const StagePlan& stage = plan_.stage(current_);
  if (!stage.has_units()) {
    return;
  }
  // A step is open as soon as its version exists. Steps with rows were open
  // before a restart and stay so.
  while (next_step_to_open_ <= stage.total_steps) {
    const int64_t step = next_step_to_open_;
    const bool has_rows =
        submitted_.lower_bound({step, 0}) != submitted_.end() ||
        step <= ForgottenUpTo(current_);
    if (!has_rows &&
        FindVersion("policy", plan_.VersionFor(current_, step)) == nullptr) {
      return;
    }
    planned_units_ += stage.units_per_step();
    for (int32_t index = 0; index < stage.units_per_step(); ++index) {
      if (step > ForgottenUpTo(current_) &&
          !submitted_.contains({step, index})) {
        pending_.insert({step, index});
      }
    }
    ++next_step_to_open_;
    Changed();
  }
}

bool CoordinatorCore::NeedsReference() const {
  const StageKind kind = plan_.stage(current_).kind;
  return kind == StageKind::kPpo || kind == StageKind::kEval;
}

bool CoordinatorCore::NeedsRewardModel() const {
  return options_.reward_model && NeedsReference();
}

std::optional<ScorePlanData> CoordinatorCore::MakeScorePlan() const {
  const StageKind kind = plan_.stage(current_).kind;
  ScorePlanData plan;
  const PolicyVersion first{current_, 0};
  if (NeedsRewardModel()) {
    const VersionRow* reward = FindVersion("reward", first);
    if (reward == nullptr) {
      return std::nullopt;
    }
    plan.reward_hash = reward->content_hash;
  }
  if (NeedsReference()) {
    const VersionRow* reference = FindVersion("reference", first);
    if (reference == nullptr) {
      return std::nullopt;
    }
    plan.reference_hash = reference->content_hash;
    plan.address = options_.reward_address;
  }
  switch (kind) {
    case StageKind::kCollect:
      plan.gold = !options_.label_by_people;
      break;
    case StageKind::kEval:
      plan.gold = options_.gold_available;
      break;
    default:
      plan.gold = options_.gold_available && options_.monitor_gold;
  }
  const bool scored = NeedsReference() || plan.gold;
  if (!scored) {
    return plan;
  }
  for (const auto& [id, session] : sessions_) {
    const bool ready =
        session.alive && session.who.caller.role == "reward" &&
        !session.who.address.empty() &&
        (plan.reward_hash.empty() || session.held.contains(plan.reward_hash)) &&
        (plan.reference_hash.empty() ||
         session.held.contains(plan.reference_hash));
    if (ready) {
      plan.reward_addresses.push_back(session.who.address);
    }
  }
  if (plan.reward_addresses.empty()) {
    return std::nullopt;
  }
  std::sort(plan.reward_addresses.begin(), plan.reward_addresses.end());
  return plan;
}

absl::Duration CoordinatorCore::LeaseDuration() const {
  absl::Duration longest;
  for (absl::Duration time : unit_times_) {
    longest = std::max(longest, time);
  }
  return std::max(options_.lease, 3 * longest);
}

absl::StatusOr<std::vector<LeaseGrant>> CoordinatorCore::Lease(
    const CoreCaller& caller, int32_t max_units) {
  COX_ASSIGN_OR_RETURN(const Session* session, Find(caller, "actor"));
  if (session->quarantined) {
    return absl::PermissionDeniedError(
        absl::StrCat(caller.name, " is shut out: a result of it was wrong"));
  }
  std::vector<LeaseGrant> grants;
  if (paused_ || draining_ || done() || !failure_.empty() ||
      !plan_.stage(current_).has_units()) {
    return grants;
  }
  const std::optional<ScorePlanData> score = MakeScorePlan();
  if (!score.has_value()) {
    return grants;
  }
  if (plan_.IsStreaming(current_)) {
    LeaseStreaming(caller.session, max_units, *score, grants);
  } else {
    LeasePlanned(caller.session, max_units, *score, grants);
  }
  return grants;
}

void CoordinatorCore::LeasePlanned(const std::string& session,
                                   int32_t max_units,
                                   const ScorePlanData& score,
                                   std::vector<LeaseGrant>& grants) {
  auto it = pending_.begin();
  while (it != pending_.end() &&
         static_cast<int32_t>(grants.size()) < max_units) {
    const int64_t step = it->first;
    const VersionRow* version =
        options_.rules.exact_version
            ? FindVersion("policy", plan_.VersionFor(current_, step))
            : NewestHeldPolicy();
    // After a restart nobody may hold the version until the learner has
    // replayed; later steps' versions can be there already.
    if (version == nullptr || !HasLiveHolder(version->content_hash)) {
      it = pending_.lower_bound({step + 1, 0});
      continue;
    }
    if (!MayCompute(session, *it)) {
      ++it;
      continue;
    }
    grants.push_back(Grant(session, *it, *version, score));
    it = pending_.erase(it);
  }
}

int64_t CoordinatorCore::StreamingCapacity() const {
  const StagePlan& stage = plan_.stage(current_);
  const int64_t width = stage.units_per_step();
  const int64_t committed_steps = committed();
  int64_t accepted = committed_steps * width;
  for (auto it = batches_.upper_bound(committed_steps); it != batches_.end();
       ++it) {
    accepted += static_cast<int64_t>(it->second.units.size());
  }
  for (const UnitKey& key : queue_) {
    // Too stale for the next step: will be dropped, so it is replaced.
    accepted += submitted_.at(key).version_step + plan_.schedule().eta >=
                        committed_steps
                    ? 1
                    : 0;
  }
  StalenessState state;
  state.eta_max = plan_.schedule().eta;
  state.batch = width;
  state.version = committed_steps;
  state.accepted = accepted;
  state.running = static_cast<int64_t>(leases_.size());
  const absl::StatusOr<int64_t> capacity = StalenessCapacity(state);
  COX_CHECK(capacity.ok());
  return std::min(*capacity,
                  stage.total_steps * width - accepted - state.running);
}

const VersionRow* CoordinatorCore::NewestHeldPolicy() const {
  const VersionRow* version = nullptr;
  for (auto it = versions_.lower_bound({"policy", {current_, 0}});
       it != versions_.end() && it->first.first == "policy" &&
       it->first.second.stage == current_;
       ++it) {
    if (HasLiveHolder(it->second.content_hash)) {
      version = &it->second;
    }
  }
  return version;
}

void CoordinatorCore::LeaseStreaming(const std::string& session,
                                     int32_t max_units,
                                     const ScorePlanData& score,
                                     std::vector<LeaseGrant>& grants) {
  const VersionRow* version = NewestHeldPolicy();
  if (version == nullptr ||
      committed() - version->version.step > plan_.schedule().eta) {
    return;
  }
  const int32_t width = plan_.stage(current_).units_per_step();
  int64_t capacity = StreamingCapacity();
  while (capacity-- > 0 && static_cast<int32_t>(grants.size()) < max_units) {
    if (pending_.empty()) {
      const int64_t n = planned_units_++;
      pending_.insert({n / width + 1, static_cast<int32_t>(n % width)});
    }
    grants.push_back(Grant(session, *pending_.begin(), *version, score));
    pending_.erase(pending_.begin());
  }
}

LeaseGrant CoordinatorCore::Grant(const std::string& session, UnitKey key,
                                  const VersionRow& version,
                                  const ScorePlanData& score) {
  LeaseGrant grant;
  grant.unit = {current_, key.first, key.second};
  grant.attempt = ++attempts_[key];
  grant.lease = LeaseDuration();
  grant.policy = Source(version, session);
  grant.score = score;
  leases_[key] = {session, now_, now_ + grant.lease};
  return grant;
}

absl::StatusOr<std::vector<bool>> CoordinatorCore::Renew(
    const CoreCaller& caller, const std::vector<UnitId>& units) {
  COX_RETURN_IF_ERROR(Find(caller, "actor").status());
  std::vector<bool> held;
  for (const UnitId& unit : units) {
    auto lease = leases_.find({unit.step, unit.index});
    const bool mine = unit.stage == current_ && lease != leases_.end() &&
                      lease->second.session == caller.session;
    if (mine) {
      lease->second.expires = now_ + LeaseDuration();
    }
    held.push_back(mine);
  }
  return held;
}

absl::Status CoordinatorCore::Return(const CoreCaller& caller,
                                     const std::vector<UnitId>& units) {
  COX_RETURN_IF_ERROR(Find(caller, "actor").status());
  for (const UnitId& unit : units) {
    auto lease = leases_.find({unit.step, unit.index});
    if (unit.stage == current_ && lease != leases_.end() &&
        lease->second.session == caller.session) {
      pending_.insert(lease->first);
      leases_.erase(lease);
      Changed(kLeaseChange);
    }
  }
  return absl::OkStatus();
}

absl::Status CoordinatorCore::CheckSubmitVersion(
    const SubmitEvent& event) const {
  if (!options_.rules.exact_version) {
    return absl::OkStatus();
  }
  if (plan_.IsStreaming(current_)) {
    const VersionRow* version =
        FindVersion("policy", {current_, event.version_step});
    if (version == nullptr || version->content_hash != event.policy_hash) {
      return absl::FailedPreconditionError(absl::StrCat(
          "unit ", event.unit.ToString(), ": no published version ",
          event.version_step, " has hash ", event.policy_hash));
    }
    if (committed() - event.version_step > plan_.schedule().eta) {
      return absl::FailedPreconditionError(
          absl::StrCat("unit ", event.unit.ToString(), ": version ",
                       event.version_step, " is more than ",
                       plan_.schedule().eta, " behind step ", committed() + 1));
    }
    return absl::OkStatus();
  }
  const PolicyVersion expected = plan_.VersionFor(current_, event.unit.step);
  const VersionRow* version = FindVersion("policy", expected);
  if (version == nullptr || version->content_hash != event.policy_hash ||
      event.version_step != expected.step) {
    return absl::FailedPreconditionError(absl::StrCat(
        "unit ", event.unit.ToString(), ": version ", expected.ToString(),
        " with hash ",
        version == nullptr ? "(not published)" : version->content_hash,
        " expected, found version ", event.version_step, " with hash ",
        event.policy_hash));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<SubmitResult>> CoordinatorCore::JudgeSubmit(
    const SubmitEvent& event) {
  COX_ASSIGN_OR_RETURN(Session * session, Find(event.caller, "actor"));
  if (session->quarantined) {
    return absl::PermissionDeniedError(absl::StrCat(
        event.caller.name, " is shut out: a result of it was wrong"));
  }
  if (!plan_.UnitExists(event.unit)) {
    return absl::InvalidArgumentError(
        absl::StrCat("unit ", event.unit.ToString(), " is not in the plan"));
  }
  if (event.unit.stage < current_) {
    return SubmitResult::kAlreadyConsumed;
  }
  const UnitKey key{event.unit.step, event.unit.index};
  if (event.unit.stage == current_) {
    if (auto found = submitted_.find(key); found != submitted_.end()) {
      if (!options_.rules.first_result_stays) {
        return std::optional<SubmitResult>();
      }
      if (found->second.sha256 == event.payload_sha256) {
        return SubmitResult::kDuplicate;
      }
      if (plan_.IsStreaming(current_) || failed_.contains(event.unit)) {
        return SubmitResult::kAlreadyConsumed;
      }
      // Two computations of one function disagree: somebody's numbers are
      // wrong. The first result stays (rule 8).
      const std::string text =
          absl::StrCat("unit ", event.unit.ToString(), ": recorded result ",
                       found->second.sha256, ", ", session->who.caller.name,
                       " submitted ", event.payload_sha256);
      AddEvent("data loss", text);
      return absl::DataLossError(text);
    }
  }
  if (event.unit.stage == current_ && IsForgotten(key)) {
    return SubmitResult::kAlreadyConsumed;
  }
  if (event.unit.stage != current_ ||
      (!pending_.contains(key) && !leases_.contains(key))) {
    return absl::FailedPreconditionError(
        absl::StrCat("unit ", event.unit.ToString(), " is not open"));
  }
  COX_RETURN_IF_ERROR(CheckSubmitVersion(event));
  return std::optional<SubmitResult>();
}

absl::StatusOr<bool> CoordinatorCore::WantsPayload(const SubmitEvent& event) {
  COX_ASSIGN_OR_RETURN(std::optional<SubmitResult> known, JudgeSubmit(event));
  return !known.has_value();
}

absl::StatusOr<SubmitResult> CoordinatorCore::Submit(const SubmitEvent& event) {
  COX_ASSIGN_OR_RETURN(std::optional<SubmitResult> known, JudgeSubmit(event));
  if (known.has_value()) {
    return *known;
  }
  if (IsAudited(event.unit)) {
    return AuditUnit(event);
  }
  AcceptUnit(event);
  return SubmitResult::kAccepted;
}

void CoordinatorCore::AcceptUnit(const SubmitEvent& event) {
  const UnitKey key{event.unit.step, event.unit.index};
  UnitRow row;
  row.id = event.unit;
  row.version_step = event.version_step;
  row.policy_hash = event.policy_hash;
  row.sha256 = event.payload_sha256;
  row.payload = event.payload;
  pending_.erase(key);
  if (auto lease = leases_.find(key); lease != leases_.end()) {
    if (lease->second.session == event.caller.session) {
      const absl::Duration time = now_ - lease->second.granted;
      if (unit_times_.size() < kUnitTimes) {
        unit_times_.push_back(time);
      } else {
        unit_times_[unit_time_next_++ % kUnitTimes] = time;
      }
    }
    leases_.erase(lease);
  }
  if (plan_.IsStreaming(current_)) {
    queue_.insert(key);
  }
  failing_.counts.erase(key);
  failing_.in_a_row = 0;
  book_.Add(row, plan_.IsStreaming(current_) ? 0 : key.first);
  submitted_in_step_[key.first] += submitted_.contains(key) ? 0 : 1;
  submitted_[key] = row;
  Record(std::move(row));
  Changed(kBatchChange);
  CheckStageComplete();
}

bool CoordinatorCore::StepIsComplete(int64_t step) const {
  const auto count = submitted_in_step_.find(step);
  return count != submitted_in_step_.end() &&
         count->second == plan_.stage(current_).units_per_step();
}

std::vector<UnitRow> CoordinatorCore::SubmittedUnits(int64_t step) const {
  std::vector<UnitRow> units;
  for (auto it = submitted_.lower_bound({step, 0});
       it != submitted_.end() && it->first.first == step; ++it) {
    units.push_back(it->second);
  }
  return units;
}

std::vector<UnitRow> CoordinatorCore::UnitsOfStep(int32_t stage,
                                                  int64_t step) const {
  std::vector<UnitRow> units;
  if (stage != current_) {
    return units;
  }
  if (!plan_.IsStreaming(stage)) {
    units = SubmittedUnits(step);
    if (!options_.rules.unit_order) {
      std::sort(units.begin(), units.end(),
                [](const UnitRow& a, const UnitRow& b) {
                  return std::pair(a.payload.segment, a.payload.offset) <
                         std::pair(b.payload.segment, b.payload.offset);
                });
    }
    return units;
  }
  if (auto batch = batches_.find(step); batch != batches_.end()) {
    for (const UnitId& unit : batch->second.units) {
      units.push_back(submitted_.at({unit.step, unit.index}));
    }
  }
  return units;
}

bool CoordinatorCore::Freeze(int64_t step) {
  const size_t width =
      static_cast<size_t>(plan_.stage(current_).units_per_step());
  BatchRow batch{current_, step, {}, {}};
  std::vector<std::pair<int64_t, UnitKey>> fresh;  // oldest version first
  for (const UnitKey& key : queue_) {
    const int64_t version = submitted_.at(key).version_step;
    if (step - 1 - version > plan_.schedule().eta) {
      batch.dropped.push_back({current_, key.first, key.second});
    } else {
      fresh.emplace_back(version, key);
    }
  }
  if (fresh.size() < width) {
    return false;
  }
  std::sort(fresh.begin(), fresh.end());
  for (size_t i = 0; i < width; ++i) {
    const UnitKey& key = fresh[i].second;
    batch.units.push_back({current_, key.first, key.second});
    queue_.erase(key);
    book_.Settle(submitted_.at(key), step);
  }
  for (const UnitId& unit : batch.dropped) {
    queue_.erase({unit.step, unit.index});
    book_.Settle(submitted_.at({unit.step, unit.index}), step);
  }
  batches_[step] = batch;
  Record(std::move(batch));
  return true;
}

absl::StatusOr<std::optional<BatchReply>> CoordinatorCore::TakeBatch(
    const CoreCaller& caller, int32_t stage, int64_t step) {
  COX_RETURN_IF_ERROR(FindMember(caller).status());
  if (stage != current_ || !plan_.stage(stage).has_learner_steps() ||
      !plan_.stage(stage).has_units() || step < 1 ||
      step > plan_.stage(stage).total_steps || step > committed() + 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "batch of stage ", stage, " step ", step, ": stage ", current_,
        " has committed ", done() ? 0 : committed(), " steps"));
  }
  COX_RETURN_IF_ERROR(CheckRemembered(stage, step));
  if (paused_ && step == committed() + 1) {
    return std::optional<BatchReply>();
  }
  if (plan_.IsStreaming(stage)) {
    if (!batches_.contains(step) && !Freeze(step)) {
      return std::optional<BatchReply>();
    }
  } else if (!StepIsComplete(step)) {
    return std::optional<BatchReply>();
  }
  COX_RETURN_IF_ERROR(CheckPayloadsKept(stage, step));
  BatchReply reply;
  reply.units = ToBatchUnits(UnitsOfStep(stage, step));
  reply.batch_sha256 = BatchHash(reply.units);
  reply.kl_coef = kl_coefs_.At(stage, step);
  return std::optional<BatchReply>(std::move(reply));
}

}  // namespace cox
