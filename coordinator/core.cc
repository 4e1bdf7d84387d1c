#include "coordinator/core.h"

#include <algorithm>
#include <utility>

#include "lib/rpc/error_reason.h"

namespace cox {
namespace {

constexpr absl::Duration kOwnStall = absl::Seconds(1);
// A client that opens its connection again calls within this time.
constexpr absl::Duration kBrokenGrace = absl::Milliseconds(500);

}  // namespace

CoordinatorCore::CoordinatorCore(CoreOptions options, RunPlan plan, Epoch epoch,
                                 MonoTime now)
    : options_(std::move(options)),
      plan_(std::move(plan)),
      epoch_(epoch),
      now_(now) {
  audit_.not_alone = now;
}

absl::StatusOr<std::unique_ptr<CoordinatorCore>> CoordinatorCore::Create(
    CoreOptions options, RunPlan plan, const LedgerState& state, Epoch epoch,
    MonoTime now) {
  std::unique_ptr<CoordinatorCore> core(
      new CoordinatorCore(std::move(options), std::move(plan), epoch, now));
  COX_RETURN_IF_ERROR(core->Recover(state));
  return core;
}

absl::Status CoordinatorCore::Recover(const LedgerState& state) {
  generation_ = state.generation;
  for (const auto& [stage, rows] : state.left_out.stages) {
    history_.forgotten[stage] = rows.up_to_step;
  }
  for (const StepRow& row : state.steps) {
    const int64_t next =
        std::max(LastStep(row.stage), ForgottenUpTo(row.stage)) + 1;
    if (row.step != next && row.step > ForgottenUpTo(row.stage)) {
      return absl::DataLossError(absl::StrCat("ledger: stage ", row.stage,
                                              ": step ", next,
                                              " expected, found ", row.step));
    }
    steps_[row.stage][row.step] = row;
  }
  for (const CheckpointRow& row : state.checkpoints) {
    checkpoints_[{row.stage, row.step}] = row;
  }
  for (const VersionRow& row : state.versions) {
    versions_[{row.model, row.version}] = row;
  }
  for (const EventRow& row : state.events) {
    events_.push_back(row);
    next_event_ = row.number + 1;
  }
  for (const ControlRow& row : state.controls) {
    next_control_ = row.number + 1;
    if (row.command == "pause" || row.command == "resume") {
      paused_ = row.command == "pause";
    }
    RecoverScale(row);
    kl_coefs_.Add(row);
  }
  COX_RETURN_IF_ERROR(RecoverStages(state));
  for (const UnitFailedRow& row : state.failed_units) {
    failed_[row.id] = row;
  }
  RecoverSegments(state);
  COX_RETURN_IF_ERROR(RecoverUnits(state));
  AddEvent("coordinator", absl::StrCat("epoch ", epoch_.value, " started"));
  DropSegments();
  ForgetHistory();
  CheckStageComplete();
  return CheckInvariants();
}

absl::Status CoordinatorCore::RecoverStages(const LedgerState& state) {
  for (const StageRow& row : state.stages) {
    if (row.stage < 0 || row.stage >= plan_.num_stages()) {
      return absl::DataLossError(
          absl::StrCat("ledger: stage ", row.stage, " is not in the plan"));
    }
    stage_rows_[row.stage] = row;
    if (plan_.stage(row.stage).total_steps == 0) {
      plan_.SetTotalSteps(row.stage, row.total_steps);
    }
    if (row.state == "done") {
      current_ = std::max(current_, row.stage + 1);
    }
  }
  if (current_ < plan_.num_stages() && !stage_rows_.contains(current_)) {
    StageRow row{current_, "running", plan_.stage(current_).total_steps, {}};
    stage_rows_[current_] = row;
    Record(row);
  }
  return absl::OkStatus();
}

absl::Status CoordinatorCore::RecoverUnits(const LedgerState& state) {
  UnitKey last{0, -1};
  std::set<UnitKey> left_out;
  if (const auto rows = state.left_out.stages.find(current_);
      rows != state.left_out.stages.end()) {
    history_.units = rows->second.units;
    for (const UnitId& unit : rows->second.unit_ids) {
      left_out.insert(left_out.end(), {unit.step, unit.index});
    }
    last = left_out.empty() ? last : *left_out.rbegin();
  }
  for (const UnitRow& row : state.units) {
    if (row.id.stage != current_) {
      continue;
    }
    if (!plan_.UnitExists(row.id)) {
      return absl::DataLossError(absl::StrCat(
          "ledger: unit ", row.id.ToString(), " is not in the plan"));
    }
    submitted_.insert_or_assign(submitted_.end(),
                                UnitKey{row.id.step, row.id.index}, row);
    ++submitted_in_step_[row.id.step];
    last = std::max(last, UnitKey{row.id.step, row.id.index});
  }
  for (const BatchRow& row : state.batches) {
    if (row.stage == current_) {
      batches_[row.step] = row;
    }
  }
  if (done() || !plan_.stage(current_).has_units()) {
    return absl::OkStatus();
  }
  if (plan_.IsStreaming(current_)) {
    for (const auto& [key, row] : submitted_) {
      queue_.insert(key);
    }
    for (const auto& [step, batch] : batches_) {
      for (const UnitId& unit : batch.units) {
        if (queue_.erase({unit.step, unit.index}) != 1) {
          return absl::DataLossError(
              absl::StrCat("ledger: unit ", unit.ToString(), " of step ", step,
                           " is missing or in two steps"));
        }
      }
      for (const UnitId& unit : batch.dropped) {
        queue_.erase({unit.step, unit.index});
      }
    }
    // Units are issued in order; holes below the last one are open again.
    const int32_t width = plan_.stage(current_).units_per_step();
    planned_units_ =
        (last.first > 0 ? (last.first - 1) * width : 0) + last.second + 1;
    for (int64_t n = 0; n < planned_units_; ++n) {
      const UnitKey key{n / width + 1, static_cast<int32_t>(n % width)};
      if (!submitted_.contains(key) && !left_out.contains(key)) {
        pending_.insert(key);
      }
    }
  }
  OpenUnits();
  return absl::OkStatus();
}

void CoordinatorCore::AdvanceTo(MonoTime now, double wall_time_s) {
  wall_time_s_ = wall_time_s;
  const absl::Duration gap = now - now_;
  now_ = now;
  if (gap <= kOwnStall) {
    return;
  }
  for (auto& [id, session] : sessions_) {
    session.last_contact = session.last_contact + gap;
  }
  for (auto& [key, lease] : leases_) {
    lease.expires = lease.expires + gap;
  }
}

void CoordinatorCore::Tick() {
  std::vector<std::string> gone;
  for (auto& [id, session] : sessions_) {
    const absl::Duration silent = now_ - session.last_contact;
    const bool broken =
        session.broken.has_value() && now_ - *session.broken > kBrokenGrace;
    if (session.alive && (broken || silent > options_.suspect)) {
      LoseSession(id, session);
    } else if (!session.alive && silent > options_.suspect * 20) {
      gone.push_back(id);
    }
  }
  for (const std::string& id : gone) {
    EndSession(id);
  }
  for (auto it = leases_.begin(); it != leases_.end();) {
    if (it->second.expires <= now_) {
      pending_.insert(it->first);
      it = leases_.erase(it);
      Changed(kLeaseChange);
    } else {
      ++it;
    }
  }
  TickAudits();
}

absl::StatusOr<CoordinatorCore::Session*> CoordinatorCore::Find(
    const CoreCaller& caller, std::string_view role) {
  if (caller.epoch > epoch_.value) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat(
                          "this is epoch ", epoch_.value,
                          ", the caller knows epoch ", caller.epoch)),
                      ErrorReason::kStaleEpoch);
  }
  // Before the epoch: sessions live in memory, so after a restart everybody
  // gets the answer that says what to do.
  auto found = sessions_.find(caller.session);
  if (found == sessions_.end()) {
    return WithReason(absl::NotFoundError(absl::StrCat(
                          "epoch ", epoch_.value, " does not know session ",
                          caller.session, " of ", caller.name, ": register")),
                      ErrorReason::kUnknownSession);
  }
  if (caller.epoch != epoch_.value) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "epoch ", caller.epoch, " is over, now ", epoch_.value)),
        ErrorReason::kStaleEpoch);
  }
  Session& session = found->second;
  if (!role.empty() && session.who.caller.role != role) {
    return absl::PermissionDeniedError(
        absl::StrCat("only for role ", std::string(role)));
  }
  session.last_contact = now_;
  session.broken.reset();
  if (!session.alive) {
    session.alive = true;
    Changed();
  }
  return &session;
}

absl::StatusOr<CoordinatorCore::Session*> CoordinatorCore::FindMember(
    const CoreCaller& caller) {
  COX_ASSIGN_OR_RETURN(Session * session, Find(caller, "learner"));
  if (!options_.rules.refuse_stale_generation) {
    return session;
  }
  const int32_t rank = session->who.rank;
  bool member = group_valid_ && caller.generation == generation_.value &&
                caller.generation > 0;
  if (member) {
    auto found = members_.find(rank);
    if (found == members_.end()) {
      // This incarnation of the coordinator has not seen the group yet.
      members_[rank].session = caller.session;
    } else {
      member = found->second.session == caller.session;
    }
  }
  if (!member) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat(
                          "generation ", caller.generation, " of rank ", rank,
                          " is over, now ", generation_.value, ": join again")),
                      ErrorReason::kStaleGeneration);
  }
  return session;
}

absl::Status CoordinatorCore::Register(const RegisterEvent& event) {
  const CoreCaller& caller = event.caller;
  if (caller.session.empty()) {
    return absl::InvalidArgumentError("caller.session is empty");
  }
  if (caller.role != "actor" && caller.role != "reward" &&
      caller.role != "learner") {
    return absl::InvalidArgumentError(
        absl::StrCat("caller.role: actor, reward or learner expected, found '",
                     caller.role, "'"));
  }
  if (caller.role == "learner" &&
      (event.rank < 0 || event.rank >= options_.world_size)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rank: 0..", options_.world_size - 1, " expected, found ", event.rank));
  }
  if (!event.numerics_class.empty()) {
    std::string& known = numerics_[caller.role];
    if (known.empty()) {
      known = event.numerics_class;
      SetMeta(absl::StrCat("numerics/", caller.role), known);
    } else if (known != event.numerics_class) {
      const std::string text = absl::StrCat(
          caller.name, ": numerics class '", event.numerics_class,
          "', this run's ", caller.role, " processes have '", known, "'");
      AddEvent("numerics", text);
      if (plan_.schedule().mode != ScheduleMode::kStreaming) {
        return absl::InvalidArgumentError(text);
      }
    }
  }
  Session& session = sessions_[caller.session];
  const bool first = session.who.caller.session.empty();
  session.who = event;
  session.last_contact = now_;
  session.alive = true;
  if (first) {
    session.number = next_session_++;
    AddEvent("session", absl::StrCat(caller.name, " registered"));
    // A supervisor restarts a process under its name: nobody shall be sent to
    // the old one's address until its silence is noticed. If both live, the
    // next call of the other brings it back.
    for (auto& [id, other] : sessions_) {
      if (id != caller.session && other.alive && !caller.name.empty() &&
          other.who.caller.name == caller.name &&
          other.who.caller.role == caller.role) {
        LoseSession(id, other);
      }
    }
  }
  Changed();
  return absl::OkStatus();
}

absl::StatusOr<bool> CoordinatorCore::Heartbeat(const HeartbeatEvent& event) {
  COX_ASSIGN_OR_RETURN(Session * session, Find(event.caller));
  session->state = event.state;
  session->state_ms = event.state_ms;
  session->waiting_for = event.waiting_for;
  session->rss_bytes = event.rss_bytes;
  SetHeld(event.caller.session, *session,
          {event.held.begin(), event.held.end()});
  return draining_ || done() || !failure_.empty();
}

void CoordinatorCore::SetHeld(const std::string& id, Session& session,
                              std::set<std::string> held) {
  if (session.quarantined) {
    held.clear();  // nobody shall fetch weights from it
  }
  if (held == session.held) {
    return;
  }
  // One more actor that can serve what others serve is no news to anybody; a
  // thousand of them report every version.
  bool news = session.who.caller.role != "actor";
  for (const std::string& hash : session.held) {
    auto found = holders_.find(hash);
    if (held.contains(hash) || found == holders_.end()) {
      continue;
    }
    found->second.erase(id);
    if (found->second.empty()) {
      holders_.erase(found);
      news = true;
    }
  }
  for (const std::string& hash : held) {
    std::set<std::string>& holders = holders_[hash];
    news = news || holders.empty();
    holders.insert(id);
  }
  session.held = std::move(held);
  if (news) {
    Changed();
  }
}

absl::Status CoordinatorCore::ReportHeld(const CoreCaller& caller,
                                         const std::vector<std::string>& hashes,
                                         const std::string& address,
                                         const std::string& damaged) {
  COX_ASSIGN_OR_RETURN(Session * session, Find(caller));
  if (!damaged.empty()) {
    AddEvent("weights damaged",
             absl::StrCat(session->who.caller.name, ": ", damaged));
  }
  if (!address.empty()) {
    session->who.address = address;
  }
  SetHeld(caller.session, *session, {hashes.begin(), hashes.end()});
  return absl::OkStatus();
}

absl::Status CoordinatorCore::Drain(const CoreCaller& caller,
                                    const std::string& reason) {
  COX_ASSIGN_OR_RETURN(Session * session, Find(caller));
  AddEvent("session left",
           absl::StrCat(session->who.caller.name, ": ", reason));
  // The one failure that a learner sees and the coordinator cannot.
  if (caller.role == "learner" && reason.starts_with("diverged")) {
    Fail(absl::StrCat(session->who.caller.name, ": ", reason), 43);
  }
  EndSession(caller.session);
  return absl::OkStatus();
}

void CoordinatorCore::LoseSession(const std::string& id, Session& session) {
  session.alive = false;
  AddEvent("session lost", session.who.caller.name);
  ReleaseLeases(id);
  std::erase_if(joiners_, [&id](const auto& joiner) {
    return joiner.second.session == id;
  });
  Changed();
}

void CoordinatorCore::EndSession(const std::string& id) {
  auto found = sessions_.find(id);
  if (found == sessions_.end()) {
    return;
  }
  ReleaseLeases(id);
  SetHeld(id, found->second, {});
  std::erase_if(joiners_, [&](const auto& joiner) {
    return joiner.second.session == id;
  });
  sessions_.erase(found);
  Changed();
}

void CoordinatorCore::ReleaseLeases(const std::string& session) {
  for (auto it = leases_.begin(); it != leases_.end();) {
    if (it->second.session == session) {
      const auto [key, lease] = *it;
      pending_.insert(key);
      it = leases_.erase(it);
      CountDeath(lease, key);
      Changed();
    } else {
      ++it;
    }
  }
}

bool CoordinatorCore::IsYounger(const std::string& id,
                                const Session& session) const {
  auto other = sessions_.find(id);
  return other != sessions_.end() && other->second.alive &&
         other->second.number > session.number;
}

bool CoordinatorCore::HasLiveHolder(const std::string& hash) const {
  auto found = holders_.find(hash);
  if (found == holders_.end()) {
    return false;
  }
  return std::any_of(found->second.begin(), found->second.end(),
                     [this](const std::string& id) {
                       auto session = sessions_.find(id);
                       return session != sessions_.end() &&
                              session->second.alive;
                     });
}

SourceData CoordinatorCore::Source(const VersionRow& version,
                                   const std::string& asking) const {
  // Whoever was named least often comes first, so that copies spread in a
  // tree instead of all from the publisher.
  constexpr size_t kMaxSources = 4;
  SourceData source;
  source.version = version;
  if (auto said = publications_.find(version.content_hash);
      said != publications_.end()) {
    const PublicationData& publication = said->second;
    source.canary = publication.canary;
    auto publisher = sessions_.find(publication.session);
    if (!publication.group_address.empty() && publisher != sessions_.end() &&
        publisher->second.alive &&
        publication.generation == generation_.value) {
      source.group_address = publication.group_address;
      source.group_generation = publication.generation;
      source.live_actors = Load().live_actors;
    }
  }
  // Of many living holders some are as good as all: from the asking one on.
  constexpr size_t kMaxRanked = 64;
  std::vector<std::pair<int64_t, std::string>> ranked;
  if (auto found = holders_.find(version.content_hash);
      found != holders_.end()) {
    const std::set<std::string>& holders = found->second;
    auto at = holders.size() > kMaxRanked ? holders.upper_bound(asking)
                                          : holders.begin();
    for (size_t i = 0; i < holders.size() && ranked.size() < kMaxRanked;
         ++i, ++at) {
      if (at == holders.end()) at = holders.begin();
      const std::string& id = *at;
      auto session = sessions_.find(id);
      if (id == asking || session == sessions_.end() ||
          !session->second.alive || session->second.who.address.empty()) {
        continue;
      }
      const std::string& address = session->second.who.address;
      auto times = handed_out_.find(address);
      ranked.emplace_back(times == handed_out_.end() ? 0 : times->second,
                          address);
    }
  }
  std::sort(ranked.begin(), ranked.end());
  if (ranked.size() > kMaxSources) {
    ranked.resize(kMaxSources);
  }
  if (!ranked.empty() && !asking.empty()) {
    ++handed_out_[ranked.front().second];
  }
  for (auto& [times, address] : ranked) {
    source.addresses.push_back(std::move(address));
  }
  return source;
}

std::optional<SourceData> CoordinatorCore::Target(
    const std::string& model) const {
  const VersionRow* newest = nullptr;
  for (const auto& [key, row] : versions_) {
    if (key.first == model && key.second.stage == current_) {
      newest = &row;
    }
  }
  if (newest == nullptr) {
    return std::nullopt;
  }
  return Source(*newest, "");
}

int64_t CoordinatorCore::live_sessions() const {
  return std::count_if(sessions_.begin(), sessions_.end(),
                       [](const auto& entry) { return entry.second.alive; });
}

int64_t CoordinatorCore::Control(ControlCommand command, double kl_coef) {
  const bool sets_kl = command == ControlCommand::kKlCoef;
  const char* names[] = {"pause", "resume", "stop"};
  ControlRow row;
  row.number = next_control_++;
  row.command = sets_kl ? KlCommand(current_, kl_coef)
                        : names[static_cast<size_t>(command)];
  // Stages without units know only their end as a border.
  const bool units = !done() && plan_.stage(current_).has_units();
  row.effective_step = command != ControlCommand::kPause ? 0
                       : units                           ? committed() + 1
                                                         : 0;
  if (sets_kl) {
    // Some rank may have the batch of the next step already: the one after it
    // is the first that all ranks begin with the new value.
    row.effective_step = committed() + 2;
    kl_coefs_.Add(row);
  }
  Record(row);
  AddEvent("control", row.command);
  if (command == ControlCommand::kStop) {
    draining_ = true;
  } else if (!sets_kl) {
    paused_ = command == ControlCommand::kPause;
  }
  Changed();
  return row.effective_step;
}

void CoordinatorCore::Fail(const std::string& text, int exit_code) {
  if (!failure_.empty()) {
    return;
  }
  failure_ = text;
  failure_exit_code_ = exit_code;
  AddEvent("failure", text);
  Effect effect;
  effect.kind = Effect::Kind::kRunFailed;
  effect.stage = current_;
  effect.text = text;
  effect.exit_code = exit_code;
  effects_.push_back(std::move(effect));
  Changed();
}

void CoordinatorCore::AddEvent(const std::string& kind,
                               const std::string& text) {
  EventRow row{next_event_++, wall_time_s_, kind, text};
  events_.push_back(row);
  if (static_cast<int64_t>(events_.size()) > kEventsInMemory) {
    events_.erase(events_.begin(), events_.begin() + kEventsInMemory / 2);
  }
  Record(std::move(row));
}

void CoordinatorCore::SetMeta(const std::string& key,
                              const std::string& value) {
  Record(MetaRow{key, value});
}

}  // namespace cox
