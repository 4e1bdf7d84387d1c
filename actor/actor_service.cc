#include "actor/actor_service.h"

#include <algorithm>
#include <utility>

#include "lib/base/failpoint.h"
#include "lib/base/log.h"
#include "lib/comm/nccl_api.h"
#include "lib/engine/canary.h"
#include "lib/metrics/trace_recorder.h"
#include "lib/rpc/engine_settings.h"
#include "lib/rpc/limits.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr absl::Duration kAssignmentPoll = absl::Seconds(5);
// Between a unit that was given back and the next lease: the same unit may
// come again at once.
constexpr absl::Duration kRetryPause = absl::Milliseconds(200);
// Weights in memory are hashed again between units when the last time is older
// than this.
constexpr absl::Duration kAttestEvery = absl::Seconds(60);
// Damaged weights in one process: its memory is not to be trusted.
constexpr int kMaxDamaged = 3;

CoordinatorClientOptions AsActor(CoordinatorClientOptions options) {
  options.role = "actor";
  return options;
}

UnitSampling ReadSampling(const v1::RegisterResponse& run) {
  const v1::GenerationSettings& g = run.config().generation();
  UnitSampling result;
  result.seed = run.config().seed();
  result.max_new_tokens = g.max_new_tokens();
  result.pad_id = run.pad_id();
  result.sampling.temperature = g.temperature();
  result.sampling.top_k = g.top_k();
  result.sampling.top_p = g.top_p();
  result.sampling.min_p = g.min_p();
  result.sampling.min_new_tokens = g.min_new_tokens();
  result.sampling.repetition_penalty = g.repetition_penalty();
  result.sampling.forbid_ids.assign(g.forbid_ids().begin(),
                                    g.forbid_ids().end());
  result.sampling.eos_ids.assign(run.eos_ids().begin(), run.eos_ids().end());
  for (const int32_t id : g.stop_ids()) {
    if (std::ranges::find(result.sampling.eos_ids, id) ==
        result.sampling.eos_ids.end()) {
      result.sampling.eos_ids.push_back(id);
    }
  }
  result.stop_strings.assign(g.stop().begin(), g.stop().end());
  return result;
}

absl::StatusOr<UnitWork> ReadUnit(const v1::LeasedUnit& leased) {
  UnitWork work;
  COX_ASSIGN_OR_RETURN(work.unit, FromProto(leased.unit()));
  COX_ASSIGN_OR_RETURN(work.version,
                       FromProto(leased.policy().ref().version()));
  work.policy_hash = leased.policy().ref().content_hash();
  work.samples_per_prompt = leased.samples_per_prompt();
  for (const v1::PromptRow& row : leased.prompts()) {
    PromptInput& prompt = work.prompts.emplace_back();
    prompt.prompt_id = row.prompt_id();
    prompt.ids.assign(row.ids().begin(), row.ids().end());
    prompt.instruction_ids.assign(row.instruction_ids().begin(),
                                  row.instruction_ids().end());
    prompt.text = row.text();
  }
  COX_RETURN_IF_ERROR(ValidateUnitWork(work));
  return work;
}

// Errors that pass, or that only concern this lease: the unit is given back
// and leased again, with newer addresses.
bool IsPassing(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status) || absl::IsFailedPrecondition(status) ||
         absl::IsResourceExhausted(status) || absl::IsNotFound(status);
}

}  // namespace

Actor::Actor(ActorOptions options)
    : options_(std::move(options)),
      client_(AsActor(options_.coordinator)),
      weight_service_(&store_,
                      {.run_id = [this] { return client_.caller().run_id; },
                       .on_chunk = nullptr}) {}

Actor::~Actor() = default;

void Actor::Stop() {
  stop_.Notify();  // first: whoever wakes below looks at it
  {
    MutexLock lock(&mutex_);
    if (!stopped_at_.has_value()) stopped_at_ = Clock::Real().Now();
    ++changes_;
    changed_.NotifyAll();
  }
  client_.StopWaiting();
}

void Actor::Fail(const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    if (failure_.ok()) failure_ = status;
  }
  Stop();
}

absl::Status Actor::Run() {
  absl::Status status = Start();
  if (status.ok()) status = Work();
  if (!status.ok()) Stop();
  Leave();
  MutexLock lock(&mutex_);
  // What failed first explains the rest; a wait that Stop() cut is no failure.
  if (!failure_.ok()) return failure_;
  return absl::IsCancelled(status) ? absl::OkStatus() : status;
}

absl::Status Actor::Start() {
  COX_ASSIGN_OR_RETURN(server_,
                       RpcServer::Start({.bind = options_.bind,
                                         .services = {&weight_service_},
                                         .advertise = options_.advertise,
                                         .tls = nullptr}));
  client_.set_own_address(server_->address());
  COX_ASSIGN_OR_RETURN(
      http_, HttpServer::Start({.host = options_.http_host,
                                .port = options_.http_port,
                                .ready = nullptr,
                                .metrics = [this] { return Metrics(); },
                                .pages = {}}));
  COX_ASSIGN_OR_RETURN(v1::RegisterResponse run, client_.Register());
  COX_ASSIGN_OR_RETURN(PolicyEngineSet engine,
                       options_.setup_engine(EngineOptionsOf(run.config())));
  engine_ = std::move(engine.engine);
  TraceRecorder::Process().Enable(run.config().log().trace(),
                                  client_.caller().run_id);
  // Otherwise matrices are multiplied with fewer bits.
  const bool exact = run.config().roles().device() == "cpu" &&
                     run.config().numerics().dtype() == "fp32";
  canary_bound_ = exact ? kCanaryBound : 200 * kCanaryBound;
  if (!engine.numerics_class.empty()) {
    client_.set_numerics_class(engine.numerics_class);
    COX_ASSIGN_OR_RETURN(run, client_.Register());
  }
  // A lease counts from the sending of the request, the long poll included.
  lease_wait_ = std::min(options_.lease_wait,
                         absl::Seconds(run.config().limits().lease_s()) / 2);
  if (run.config().roles().weight_transport() == "nccl") {
    COX_RETURN_IF_ERROR(Annotate(CheckNccl(), "roles.weight_transport nccl"));
    weight_group_timeout_ =
        absl::Seconds(run.config().limits().weight_group_timeout_s());
  }
  sampling_ = ReadSampling(run);
  COX_RETURN_IF_ERROR(sampling_.sampling.Validate());
  COX_RETURN_IF_ERROR(FetchTokenizer(run));
  rewards_ = std::make_unique<RewardClient>(
      RewardClientOptions{.caller = [this] { return client_.caller(); },
                          .patience = options_.score_patience});
  heartbeater_ = std::make_unique<Heartbeater>(
      &client_, absl::Seconds(run.config().limits().heartbeat_s()),
      [this] { Stop(); });
  scorer_ = Thread("scorer", [this] { ScoreLoop(); });
  renewer_ = Thread("renewer", [this] { RenewLoop(); });
  assignment_ = Thread("assignment", [this] { AssignmentLoop(); });
  server_->SetServing(true);
  LogInfo("actor runs", {{"address", server_->address()},
                         {"numerics", engine.numerics_class},
                         Field("http_port", http_->port())});
  return absl::OkStatus();
}

absl::Status Actor::FetchTokenizer(const v1::RegisterResponse& run) {
  if (run.tokenizer_sha256().empty()) return absl::OkStatus();
  COX_ASSIGN_OR_RETURN(const FetchedFile file,
                       client_.FetchFile("tokenizer.json"));
  if (file.sha256 != run.tokenizer_sha256()) {
    return absl::DataLossError(absl::StrCat("tokenizer.json: expected SHA-256 ",
                                            run.tokenizer_sha256(), ", found ",
                                            file.sha256));
  }
  COX_ASSIGN_OR_RETURN(tokenizer_, Tokenizer::FromJson(file.bytes));
  sampling_.tokenizer = tokenizer_;
  return absl::OkStatus();
}

absl::Status Actor::Work() {
  while (!stop_.HasBeenNotified()) {
    ActorAction action;
    uint64_t seen = 0;
    {
      MutexLock lock(&mutex_);
      action = core_.Next(Clock::Real().Now(), held_hash_);
      seen = changes_;
    }
    switch (action.kind) {
      case ActorAction::Kind::kLease:
        COX_RETURN_IF_ERROR(LeaseUnits(action.max_units));
        break;
      case ActorAction::Kind::kSwap:
        COX_RETURN_IF_ERROR(Swap(action.lease));
        break;
      case ActorAction::Kind::kGenerate:
        COX_RETURN_IF_ERROR(Generate(action.lease));
        break;
      case ActorAction::Kind::kWait: {
        heartbeater_->SetState("waiting", "reward or assignment");
        const absl::Duration wait = action.wake.has_value()
                                        ? *action.wake - Clock::Real().Now()
                                        : absl::Hours(1);
        MutexLock lock(&mutex_);
        changed_.WaitFor(mutex_, wait,
                         [this, seen]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                           return changes_ != seen;
                         });
        break;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Actor::LeaseUnits(int max_units) {
  heartbeater_->SetState("waiting for a unit", "coordinator");
  const MonoTime sent = Clock::Real().Now();
  const int64_t asked_ns = UnixNanos();
  COX_ASSIGN_OR_RETURN(v1::LeaseUnitsResponse response,
                       client_.LeaseUnits(max_units, lease_wait_));
  const int64_t leased_ns = UnixNanos();
  std::vector<GrantedUnit> granted;
  for (const v1::LeasedUnit& unit : response.units()) {
    COX_ASSIGN_OR_RETURN(const UnitWork work, ReadUnit(unit));
    if (unit.lease_ms() <= 0) {
      return absl::InvalidArgumentError("lease_ms: expected > 0");
    }
    granted.push_back({.unit = work.unit,
                       .lease = absl::Milliseconds(unit.lease_ms()),
                       .policy_hash = work.policy_hash});
    RecordSpan("lease", UnitTrace(work.unit), work.unit.ToString(), asked_ns,
               leased_ns);
  }
  MutexLock lock(&mutex_);
  const std::vector<LocalLease> leases = core_.OnLeased(sent, granted);
  // Leases that ended while ready leave their unit here.
  std::erase_if(sources_,
                [this](const auto& entry) ABSL_NO_THREAD_SAFETY_ANALYSIS {
                  return !core_.Holds(entry.first, Clock::Real().Now());
                });
  for (size_t i = 0; i < leases.size(); ++i) {
    const v1::LeasedUnit& unit = response.units(static_cast<int>(i));
    sources_[leases[i]] = unit;
    if (unit.has_score()) newest_plan_ = unit.score();
  }
  ++changes_;
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status Actor::Swap(LocalLease lease) {
  v1::LeasedUnit leased;
  {
    MutexLock lock(&mutex_);
    const auto it = sources_.find(lease);
    if (it == sources_.end()) return absl::OkStatus();
    leased = it->second;
  }
  COX_ASSIGN_OR_RETURN(const VersionSource source, FromProto(leased.policy()));
  const absl::Status loaded = LoadWeights(source);
  if (loaded.ok() || !IsPassing(loaded)) return loaded;
  COX_ASSIGN_OR_RETURN(const UnitId unit, FromProto(leased.unit()));
  GiveBack(lease, unit, loaded);
  stop_.WaitFor(kRetryPause);
  return absl::OkStatus();
}

absl::Status Actor::LoadWeights(const VersionSource& source) {
  std::shared_ptr<const Snapshot> snapshot = store_.Get(source.content_hash);
  if (snapshot == nullptr) {
    COX_ASSIGN_OR_RETURN(snapshot, FetchWeights(source));
  }
  // From here until the canary has spoken the engine holds no version.
  const std::string before = std::exchange(held_hash_, "");
  const absl::Status loaded = engine_->Load(snapshot);
  if (!loaded.ok()) {
    // Verified weights that no engine takes: no retry will change that.
    return absl::InternalError(absl::StrCat("load policy ", source.content_hash,
                                            ": ", loaded.ToString()));
  }
  if (HitFailpoint("actor.memory") == FailAction::kFlip) {
    const std::span<const std::byte> arena = snapshot->arena->bytes();
    const_cast<std::byte&>(arena[arena.size() / 2]) ^= std::byte{0x10};
  }
  loaded_ = snapshot;
  if (!before.empty()) previous_hash_ = before;
  COX_RETURN_IF_ERROR(Attest(source.canary));
  HitFailpoint("actor.loaded");
  held_hash_ = source.content_hash;
  ++swaps_;
  // The one before stays: peers may still be fetching it, and with a lag its
  // units may not all be done.
  store_.Put(snapshot);
  store_.Keep({held_hash_, previous_hash_});
  heartbeater_->SetHeld(store_.Held());
  LogInfo("policy loaded", {{"version", source.version.ToString()},
                            {"hash", source.content_hash}});
  const absl::Status told =
      client_.ReportHeld(store_.Held(), server_->address());
  // Only who fetches from whom depends on it.
  if (!told.ok() && !absl::IsUnavailable(told)) {
    LogWarning("ReportHeld failed", {{"error", told.ToString()}});
  }
  return absl::OkStatus();
}

absl::Status Actor::Attest(const std::vector<float>& canary) {
  absl::Status sound = VerifySnapshot(*loaded_);
  if (sound.ok()) {
    COX_ASSIGN_OR_RETURN(const std::vector<float> own,
                         CanaryLogprobs(engine_.get()));
    sound = Annotate(CompareCanary(own, canary, canary_bound_),
                     loaded_->content_hash);
  }
  attested_ = Clock::Real().Now();
  if (sound.ok()) return sound;
  LogError("weights are damaged", {{"error", sound.ToString()}});
  held_hash_.clear();
  loaded_ = nullptr;
  store_.Keep({previous_hash_});
  heartbeater_->SetHeld(store_.Held());
  const absl::Status told = client_.ReportHeld(
      store_.Held(), server_->address(), std::string(sound.message()));
  if (!told.ok()) LogWarning("ReportHeld", {{"error", told.ToString()}});
  if (++damaged_ >= kMaxDamaged) {
    return absl::InternalError(absl::StrCat("weights were damaged ", damaged_,
                                            " times: ", sound.ToString()));
  }
  return absl::UnavailableError(sound.ToString());
}

absl::Status Actor::Generate(LocalLease lease) {
  if (Clock::Real().Now() - attested_ > kAttestEvery) {
    const absl::Status sound = Attest({});
    // The unit stays ready; the weights are fetched again first.
    if (!sound.ok()) return IsPassing(sound) ? absl::OkStatus() : sound;
  }
  Finished unit;
  unit.lease = lease;
  {
    MutexLock lock(&mutex_);
    auto node = sources_.extract(lease);
    if (node.empty()) return absl::OkStatus();
    unit.source = std::move(node.mapped());
    core_.OnGenerating(lease);
  }
  COX_ASSIGN_OR_RETURN(unit.work, ReadUnit(unit.source));
  const TraceScope scope("generate", UnitTrace(unit.work.unit),
                         unit.work.unit.ToString());
  heartbeater_->SetState(
      absl::StrCat("generating ", unit.work.unit.ToString()));
  COX_ASSIGN_OR_RETURN(
      const GenerateResult result,
      engine_->Generate(MakeGenerateRequest(unit.work, sampling_)));
  COX_ASSIGN_OR_RETURN(unit.trajectories, MakeTrajectories(unit.work, result));
  for (const auto& tokens : result.tokens) tokens_generated_ += tokens.size();
  HitFailpoint("actor.generated");
  if (HitFailpoint("actor.result") == FailAction::kFlip) {
    float& value = unit.trajectories.front().behaviour_logprobs.front();
    value -= 0.125f;
  }
  MutexLock lock(&mutex_);
  core_.OnGenerated(lease);
  to_score_.push_back(std::move(unit));
  ++changes_;
  changed_.NotifyAll();
  return absl::OkStatus();
}

void Actor::ScoreLoop() {
  while (true) {
    Finished unit;
    {
      MutexLock lock(&mutex_);
      changed_.WaitFor(mutex_, absl::Hours(1),
                       [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                         return closing_ || !to_score_.empty();
                       });
      if (to_score_.empty()) {
        if (closing_) return;
        continue;
      }
      unit = std::move(to_score_.front());
      to_score_.pop_front();
    }
    const absl::Status status = ScoreAndSubmit(&unit);
    if (status.ok()) {
      HitFailpoint("actor.submitted");
      ++units_submitted_;
      MutexLock lock(&mutex_);
      core_.OnFinished(unit.lease);
      ++changes_;
      changed_.NotifyAll();
    } else if (IsPassing(status) || unit.refused) {
      GiveBack(unit.lease, unit.work.unit, status);
    } else {
      Fail(Annotate(status, "unit " + unit.work.unit.ToString()));
    }
  }
}

absl::Status Actor::DescribeForScoring(Finished* unit,
                                       ScoringWork* work) const {
  work->trajectories = &unit->trajectories;
  work->temperature = sampling_.sampling.temperature;
  for (const Trajectory& t : unit->trajectories) {
    const size_t p = static_cast<size_t>(t.id.prompt);
    work->prompt_texts.push_back(unit->work.prompts[p].text);
    std::string& text = work->response_texts.emplace_back();
    if (tokenizer_ != nullptr) {
      COX_ASSIGN_OR_RETURN(text, tokenizer_->Decode(t.response_ids));
      if (text.size() > kMaxTextBytes) {
        return absl::InvalidArgumentError(absl::StrCat(
            t.id.ToString(), ": the answer's text is larger than 64 KiB"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Actor::ScoreAndSubmit(Finished* unit) {
  const LocalLease lease = unit->lease;
  if (GiveUp(lease)) return absl::CancelledError("the lease is over");
  ScoringWork work;
  const absl::Status described = DescribeForScoring(unit, &work);
  unit->refused = absl::IsInvalidArgument(described);
  COX_RETURN_IF_ERROR(described);
  // Without a plan nothing is asked for. A plan without addresses is another
  // thing: its replicas are away.
  if (unit->source.has_score()) {
    v1::ScorePlan plan = unit->source.score();
    UseNewestReplicas(&plan);
    const TraceScope scope("score", UnitTrace(unit->work.unit),
                           unit->work.unit.ToString());
    COX_RETURN_IF_ERROR(rewards_->ScoreUnit(
        plan, work, [this, lease] { return GiveUp(lease); }));
  }
  SubmitUnitOptions submit;
  submit.unit = unit->work.unit;
  submit.attempt = unit->source.attempt();
  submit.policy_hash = unit->work.policy_hash;
  COX_ASSIGN_OR_RETURN(submit.payload, SerializeUnit(unit->trajectories));
  if (GiveUp(lease)) return absl::CancelledError("the lease is over");
  HitFailpoint("actor.scored");
  const TraceScope scope("submit", UnitTrace(unit->work.unit),
                         unit->work.unit.ToString());
  // Duplicate and already consumed are fine: somebody was faster.
  const absl::Status submitted = client_.SubmitUnit(submit).status();
  unit->refused = absl::IsInvalidArgument(submitted);
  return submitted;
}

void Actor::UseNewestReplicas(v1::ScorePlan* plan) const {
  MutexLock lock(&mutex_);
  if (newest_plan_.reward_addresses_size() > 0 &&
      newest_plan_.reward_hash() == plan->reward_hash() &&
      newest_plan_.reference_hash() == plan->reference_hash()) {
    *plan->mutable_reward_addresses() = newest_plan_.reward_addresses();
  }
}

bool Actor::Holds(LocalLease lease) const {
  MutexLock lock(&mutex_);
  return core_.Holds(lease, Clock::Real().Now());
}

bool Actor::GiveUp(LocalLease lease) const {
  if (!Holds(lease)) return true;
  MutexLock lock(&mutex_);
  return stopped_at_.has_value() &&
         Clock::Real().Now() - *stopped_at_ > options_.flush;
}

void Actor::GiveBack(LocalLease lease, const UnitId& unit,
                     const absl::Status& why) {
  ++units_given_back_;
  LogWarning("unit given back",
             {{"unit", unit.ToString()}, {"why", why.ToString()}});
  if (Holds(lease)) {
    // If it does not arrive, the lease expires by itself.
    const absl::Status told = client_.ReturnUnits(
        {unit}, IsPassing(why) ? "" : std::string(why.message()));
    if (!told.ok()) LogWarning("ReturnUnits", {{"error", told.ToString()}});
  }
  MutexLock lock(&mutex_);
  core_.OnFinished(lease);
  sources_.erase(lease);
  ++changes_;
  changed_.NotifyAll();
}

void Actor::RenewLoop() {
  while (true) {
    ActorCore::Renewal renewal;
    const MonoTime now = Clock::Real().Now();
    {
      MutexLock lock(&mutex_);
      if (closing_ && to_score_.empty()) return;
      renewal = core_.RenewalDue(now);
      if (renewal.leases.empty()) {
        const uint64_t seen = changes_;
        const std::optional<MonoTime> next = core_.NextRenewal();
        changed_.WaitFor(
            mutex_, next.has_value() ? *next - now : absl::Hours(1),
            [this, seen]()
                ABSL_NO_THREAD_SAFETY_ANALYSIS { return changes_ != seen; });
        continue;
      }
    }
    absl::StatusOr<std::vector<bool>> held = client_.RenewLease(renewal.units);
    if (!held.ok()) {
      if (stop_.HasBeenNotified()) return;
      return Fail(Annotate(held.status(), "renew leases"));
    }
    MutexLock lock(&mutex_);
    core_.OnRenewed(now, renewal.leases, *held);
    ++changes_;
    changed_.NotifyAll();
  }
}

void Actor::AssignmentLoop() {
  int64_t serial = 0;
  while (!stop_.HasBeenNotified()) {
    absl::StatusOr<v1::Assignment> assignment =
        client_.GetAssignment(serial, kAssignmentPoll);
    if (!assignment.ok()) {
      if (stop_.HasBeenNotified()) return;
      return Fail(Annotate(assignment.status(), "assignment"));
    }
    if (assignment->kind() == v1::Assignment::DONE ||
        assignment->kind() == v1::Assignment::STOP) {
      return Stop();
    }
    serial = assignment->serial();
    MutexLock lock(&mutex_);
    core_.SetServing(assignment->kind() == v1::Assignment::SERVE);
    ++changes_;
    changed_.NotifyAll();
  }
}

}  // namespace cox
