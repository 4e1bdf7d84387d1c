#include "tests/coordinator/core_simulation.h"

#include <algorithm>
#include <utility>

namespace cox {
namespace {

std::string Hash(const std::string& text) { return Sha256Hex(text); }

RunPlan MakePlan(const SimulationOptions& options) {
  PlanOptions plan;
  plan.seed = 7;
  plan.schedule = options.schedule;
  StagePlan sft;
  sft.kind = StageKind::kSft;
  sft.total_steps = 2;
  StagePlan collect;
  collect.kind = StageKind::kCollect;
  collect.total_steps = 1;
  collect.prompt_count = 5;
  collect.prompts_per_step = 5;
  collect.unit_prompts = 2;
  collect.samples_per_prompt = 2;
  StagePlan ppo;
  ppo.kind = StageKind::kPpo;
  ppo.total_steps = options.steps;
  ppo.prompt_count = 7;
  ppo.prompts_per_step = 6;
  ppo.unit_prompts = 2;
  StagePlan eval = collect;
  eval.kind = StageKind::kEval;
  eval.total_steps = 2;
  plan.stages = {sft, collect, ppo, eval};
  auto made = RunPlan::Create(plan);
  COX_CHECK(made.ok());
  return *std::move(made);
}

// Errors that a live process meets when others die around it.
bool Expected(const absl::Status& status) {
  return status.ok() || absl::IsNotFound(status) ||
         absl::IsFailedPrecondition(status);
}

}  // namespace

absl::Status Simulation::Restart() {
  CoreOptions options;
  options.world_size = options_.world_size;
  options.checkpoint_dir = "/ckpt";
  options.keep_last = 2;
  options.gold_available = true;
  ledger_ = OpenMemoryLedger(&disk_);
  COX_ASSIGN_OR_RETURN(LedgerState state, ledger_->Load());
  COX_ASSIGN_OR_RETURN(core_,
                       CoordinatorCore::Create(options, MakePlan(options_),
                                               state, ledger_->epoch(), now_));
  return Settle();
}

absl::Status Simulation::Settle() {
  while (true) {
    const std::vector<LedgerRow> rows = core_->TakeRows();
    if (!rows.empty()) {
      COX_RETURN_IF_ERROR(ledger_->Commit(rows));
    }
    const std::vector<Effect> effects = core_->TakeEffects();
    if (effects.empty() && rows.empty()) {
      break;
    }
    for (const Effect& effect : effects) {
      if (effect.kind == Effect::Kind::kStageComplete) {
        core_->FinishStage(effect.stage, {}, 0);
      } else if (effect.kind == Effect::Kind::kRunFailed) {
        return absl::DataLossError(effect.text);
      }
    }
  }
  return core_->CheckInvariants();
}

bool Simulation::EnsureRegistered(const std::string& session,
                                  const std::string& role,
                                  const std::string& name, int32_t rank,
                                  int64_t generation) {
  RegisterEvent event;
  event.caller = Caller(session, role, name, generation);
  event.address = "127.0.0.1:1";
  event.rank = rank;
  if (registered_epoch_[session] == core_->epoch().value) {
    HeartbeatEvent beat;
    beat.caller = event.caller;
    // Everybody holds every published version: who fetches what is not the
    // business of this simulation.
    for (const VersionRow& version : disk_.state.versions) {
      beat.held.push_back(version.content_hash);
    }
    if (core_->Heartbeat(beat).ok()) {
      return true;
    }
  }
  registered_epoch_[session] = core_->epoch().value;
  return core_->Register(event).ok();
}

absl::Status Simulation::ActorTurn(size_t index) {
  Actor& actor = actors_[index];
  if (Fault()) {  // killed
    actor = Actor{NewSession(), {}};
  }
  const std::string name = absl::StrCat("actor-", index);
  EnsureRegistered(actor.session, "actor", name, 0, 0);
  const CoreCaller caller = Caller(actor.session, "actor", name);
  if (actor.leases.empty()) {
    auto grants = core_->Lease(caller, 2);
    if (!grants.ok()) {
      return Expected(grants.status()) ? absl::OkStatus() : grants.status();
    }
    actor.leases = *std::move(grants);
    return absl::OkStatus();
  }
  const LeaseGrant grant = actor.leases.back();
  actor.leases.pop_back();
  if (Fault()) {
    return core_->Return(caller, {grant.unit});
  }
  SubmitEvent submit;
  submit.caller = caller;
  submit.unit = grant.unit;
  submit.policy_hash = grant.policy.version.content_hash;
  submit.version_step = grant.policy.version.version.step;
  // In streaming another attempt is another sample.
  submit.payload_sha256 =
      Hash(absl::StrCat(grant.unit.ToString(), submit.policy_hash,
                        core_->plan().IsStreaming(grant.unit.stage)
                            ? grant.attempt
                            : 0));
  if (Fault()) {
    delayed_.push_back(submit);
    return absl::OkStatus();
  }
  for (int copies = Fault() ? 2 : 1; copies > 0; --copies) {
    auto result = core_->Submit(submit);
    if (!result.ok()) {
      if (!Expected(result.status())) {
        return result.status();
      }
      continue;
    }
    COX_RETURN_IF_ERROR(Settle());
    if (*result == SubmitResult::kAccepted &&
        !first_result_.emplace(submit.unit, submit.payload_sha256).second) {
      return absl::InternalError("a unit was accepted twice");
    }
  }
  return absl::OkStatus();
}

absl::Status Simulation::RewardTurn() {
  if (Fault()) {
    reward_session_ = NewSession();
  }
  EnsureRegistered(reward_session_, "reward", "reward-0", 0, 0);
  return absl::OkStatus();
}

absl::Status Simulation::Publish(const std::string& model,
                                 PolicyVersion version,
                                 const std::string& hash) {
  PublishEvent event;
  event.caller = Caller(ranks_[0].session, "learner", "learner-0",
                        ranks_[0].generation);
  event.version = {model, version, hash, "manifest"};
  event.address = "127.0.0.1:1";
  const absl::Status status = core_->Publish(event);
  return Expected(status) ? absl::OkStatus() : status;
}

absl::Status Simulation::PublishAll(const AssignmentData& assignment) {
  for (const PublishOrderData& order : assignment.publish) {
    const std::string weights = order.checkpoint.has_value()
                                    ? order.checkpoint->weight_hash
                                    : Hash("initial");
    COX_RETURN_IF_ERROR(Publish(order.model, order.version, weights));
  }
  return absl::OkStatus();
}

absl::Status Simulation::Train(const AssignmentData& assignment) {
  Rank& rank = ranks_[0];
  const bool ppo = assignment.stage_kind == "ppo";
  const CoreCaller caller =
      Caller(rank.session, "learner", "learner-0", rank.generation);
  if (rank.stage != assignment.stage) {
    rank.stage = assignment.stage;
    rank.step = assignment.resume.has_value() ? assignment.resume->step : 0;
    rank.weights = assignment.resume.has_value()
                       ? assignment.resume->weight_hash
                   : assignment.policy.has_value()
                       ? assignment.policy->weight_hash
                       : Hash("initial");
  }
  if (ppo) {
    COX_RETURN_IF_ERROR(PublishAll(assignment));
    if (rank.step > 0) {
      COX_RETURN_IF_ERROR(
          Publish("policy", {rank.stage, rank.step}, rank.weights));
    }
  }
  if (rank.step == assignment.total_steps) {
    return absl::OkStatus();
  }
  CommitStepEvent commit;
  commit.batch_sha256 = Hash(absl::StrCat("data ", rank.step + 1));
  if (ppo) {
    auto batch = core_->TakeBatch(caller, rank.stage, rank.step + 1);
    if (!batch.ok()) {
      return Expected(batch.status()) ? absl::OkStatus() : batch.status();
    }
    if (!batch->has_value()) {
      return absl::OkStatus();
    }
    commit.batch_sha256 = (*batch)->batch_sha256;
    COX_RETURN_IF_ERROR(Settle());
  }
  commit.caller = caller;
  commit.stage = rank.stage;
  commit.step = rank.step + 1;
  commit.weight_hash = Hash(rank.weights + commit.batch_sha256);
  commit.metrics = {{"lr", 0.5}};
  if (commit.step % 3 == 0 || commit.step == assignment.total_steps) {
    auto directory = core_->BeginCheckpoint(caller, commit.stage, commit.step);
    if (!directory.ok()) {
      return Expected(directory.status()) ? absl::OkStatus()
                                          : directory.status();
    }
    commit.checkpoint = CheckpointData{
        commit.step, *directory, Hash(*directory),
        Hash("state of " + commit.weight_hash)};
  }
  auto committed = core_->CommitStep(commit);
  if (!committed.ok()) {
    return Expected(committed.status()) ? absl::OkStatus()
                                        : committed.status();
  }
  COX_RETURN_IF_ERROR(Settle());
  if (Fault()) {
    return absl::OkStatus();  // the reply was lost: the step comes again
  }
  rank.step = commit.step;
  rank.weights = commit.weight_hash;
  return absl::OkStatus();
}

absl::Status Simulation::LearnerTurn() {
  if (Fault()) {
    Rank& victim = ranks_[rng_.NextBelow(ranks_.size())];
    victim = Rank();
    victim.session = NewSession();
  }
  for (size_t r = 0; r < ranks_.size(); ++r) {
    Rank& rank = ranks_[r];
    const std::string name = absl::StrCat("learner-", r);
    EnsureRegistered(rank.session, "learner", name, static_cast<int32_t>(r),
                     rank.generation);
    CoreCaller caller = Caller(rank.session, "learner", name, rank.generation);
    if (rank.generation == 0) {
      auto joined = core_->Join({caller, static_cast<int32_t>(r),
                                 options_.world_size, "127.0.0.1:9"});
      COX_RETURN_IF_ERROR(joined.status());
      if (joined->ready) {
        COX_RETURN_IF_ERROR(Settle());
        rank.generation = joined->generation.value;
      }
      continue;
    }
    auto assignment = core_->GetAssignment(caller);
    if (absl::IsFailedPrecondition(assignment.status())) {
      rank = Rank();  // fenced: leaves and comes back as another process
      rank.session = NewSession();
      continue;
    }
    COX_RETURN_IF_ERROR(assignment.status());
    if (r != 0) {
      continue;  // rank 0 speaks for the group
    }
    if (assignment->kind == AssignmentKind::kTrain) {
      COX_RETURN_IF_ERROR(Train(*assignment));
    } else if (assignment->kind == AssignmentKind::kServe) {
      COX_RETURN_IF_ERROR(PublishAll(*assignment));
    }
  }
  return absl::OkStatus();
}

absl::Status Simulation::Run(int noisy_turns) {
  fault_rate_ = options_.fault_rate;
  for (int i = 0; i < options_.actors; ++i) {
    actors_.push_back({NewSession(), {}});
  }
  reward_session_ = NewSession();
  for (int32_t i = 0; i < options_.world_size; ++i) {
    ranks_.emplace_back();
    ranks_.back().session = NewSession();
  }
  COX_RETURN_IF_ERROR(Restart());
  const int last_turn = noisy_turns + 4000;
  for (int turn = 0; turn < last_turn && !core_->done(); ++turn) {
    if (turn == noisy_turns) {
      fault_rate_ = 0;
    }
    now_ = now_ + absl::Milliseconds(Fault() ? 900 : 50);
    core_->AdvanceTo(now_, 0);
    core_->Tick();
    if (rng_.NextUniform() < fault_rate_ * 0.3) {
      // Killed between the events and their commit: what was not settled is
      // gone, and nobody was told of it.
      COX_RETURN_IF_ERROR(Restart());
    }
    if (!delayed_.empty() && rng_.NextUniform() < 0.3) {
      SubmitEvent late = delayed_[rng_.NextBelow(delayed_.size())];
      late.caller.epoch = core_->epoch().value;
      auto result = core_->Submit(late);
      if (result.ok() && *result == SubmitResult::kAccepted) {
        COX_RETURN_IF_ERROR(Settle());
        first_result_.emplace(late.unit, late.payload_sha256);
      } else if (!result.ok() && !Expected(result.status())) {
        return result.status();
      }
    }
    const size_t who = rng_.NextBelow(actors_.size() + 2);
    if (who < actors_.size()) {
      COX_RETURN_IF_ERROR(ActorTurn(who));
    } else if (who == actors_.size()) {
      COX_RETURN_IF_ERROR(RewardTurn());
    } else {
      COX_RETURN_IF_ERROR(LearnerTurn());
    }
    COX_RETURN_IF_ERROR(Settle());
  }
  if (!core_->done()) {
    return absl::DeadlineExceededError(absl::StrCat(
        "stuck in stage ", core_->current_stage(), " after ",
        core_->committed(), " steps"));
  }
  // No result changed after it was acknowledged.
  for (const UnitRow& row : disk_.state.units) {
    auto first = first_result_.find(row.id);
    if (first == first_result_.end() || first->second != row.sha256) {
      return absl::DataLossError(
          absl::StrCat("unit ", row.id.ToString(), " changed its result"));
    }
  }
  return absl::OkStatus();
}

}  // namespace cox
