#include "tests/sim/coordinator_process.h"

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace cox::sim {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(400);
constexpr int64_t kCheckEvery = 8;  // turns

// The memory ledger, with the faults of the disk and the checker's eyes.
class SimLedger : public LedgerStore {
 public:
  SimLedger(World& world, std::unique_ptr<LedgerStore> ledger)
      : world_(world), ledger_(std::move(ledger)) {}
  Epoch epoch() const override { return ledger_->epoch(); }
  int64_t last_transaction() const override {
    return ledger_->last_transaction();
  }
  absl::Status CheckFence() override { return ledger_->CheckFence(); }
  absl::Status Commit(const std::vector<LedgerRow>& rows) override {
    const absl::Status allowed = world_.CommitAllowed();
    // A transaction whose answer is lost may have reached the disk.
    if (!allowed.ok() &&
        (absl::IsResourceExhausted(allowed) || world_.rng.NextBelow(2) == 0)) {
      return allowed;
    }
    const absl::Status committed = ledger_->Commit(rows);
    if (committed.ok()) {
      world_.checker.OnRows(rows, ledger_->epoch());
    } else if (absl::IsAlreadyExists(committed)) {
      world_.checker.Violation(
          "invariant 10: a row was to be written a second time");
    }
    return allowed.ok() ? committed : allowed;
  }
  absl::StatusOr<LedgerState> Load(const LedgerWindow& options) override {
    return ledger_->Load(options);
  }
  absl::Status Close() override { return ledger_->Close(); }

 private:
  World& world_;
  std::unique_ptr<LedgerStore> ledger_;
};

}  // namespace

CoordinatorProcess::CoordinatorProcess(World& world, std::string its_name)
    : Process(world, Role::kCoordinator, std::move(its_name)) {}

absl::Status CoordinatorProcess::Open() {
  auto ledger =
      std::make_unique<SimLedger>(world_, OpenMemoryLedger(&world_.disk));
  COX_ASSIGN_OR_RETURN(const LedgerState state, ledger->LoadAll());
  world_.checker.OnRecovered(state);
  // As little as the rules allow.
  constexpr int64_t kHistorySteps = 0;
  COX_ASSIGN_OR_RETURN(
      const LedgerState recent,
      ledger->Load(
          {.keep_steps = world_.plan.schedule().StepsKept(kHistorySteps),
           .keep_events = 3}));
  COX_ASSIGN_OR_RETURN(auto segments,
                       SegmentStore::Open(world_.fs,
                                          {.dir = "/run/segments",
                                           .segment_bytes = 512,
                                           .left_out = recent.left_out},
                                          recent.units, recent.removed_segments,
                                          ledger->last_transaction()));
  std::set<int32_t> gone;
  for (const SegmentRemovedRow& row : state.removed_segments) {
    gone.insert(row.segment);
  }
  for (const UnitRow& row : state.units) {  // 4
    if (gone.contains(row.payload.segment)) {
      continue;
    }
    COX_RETURN_IF_ERROR(segments->Read(row.payload, row.sha256).status());
  }
  CoreOptions options;
  options.world_size = world_.world_size;
  options.checkpoint_dir = "/run/checkpoints";
  options.gold_available = true;
  options.reward_model = world_.variant.stages == 2;
  options.audit_fraction = world_.audit ? 1 : 0;
  options.poison_after = world_.poison_after;
  options.give_up_after = world_.poison.has_value() ? 3 : 0;
  options.payloads.bytes = world_.payload_bytes;
  options.history_steps = kHistorySteps;
  options.rules = world_.rules.core;
  COX_ASSIGN_OR_RETURN(
      auto core, CoordinatorCore::Create(options, world_.plan, recent,
                                         ledger->epoch(), world_.loop.mono()));
  turn_ = std::make_unique<CoreTurn>(std::move(core), std::move(ledger),
                                     std::move(segments), kTick);
  turn_->Start(this, world_.loop.mono());
  return absl::OkStatus();
}

void CoordinatorProcess::OnStart() {
  const absl::Status opened = Open();
  if (world_.AfterDiskUse(*this)) {
    return;
  }
  if (!opened.ok()) {
    if (absl::IsDataLoss(opened)) {
      world_.checker.Violation(opened.ToString());
    }
    Kill("cannot start");
    return;
  }
  turn_due_ = false;
  if (world_.tracing()) {
    world_.Trace(
        absl::StrCat(name, " starts as epoch ", turn_->core().epoch().value));
  }
  RunTurn();
}

void CoordinatorProcess::OnKilled() {
  turn_ = nullptr;
  queue_.clear();
}

void CoordinatorProcess::Post(CoreTurn::Item item) {
  queue_.push_back(std::move(item));
  if (!turn_due_) {
    turn_due_ = true;
    After(2 * kMs, [this] { RunTurn(); });
  }
}

void CoordinatorProcess::Submit(SubmitEvent event, std::string payload,
                                ReplyTo<SubmitResult> reply) {
  CoreTurn::Item item;
  item.submit = std::move(event);
  item.payload = std::move(payload);
  item.reply = std::move(reply);
  Post(std::move(item));
}

void CoordinatorProcess::RunTurn() {
  turn_due_ = false;
  std::vector<CoreTurn::Item> items = std::move(queue_);
  queue_.clear();
  const absl::Status status =
      turn_->Run(world_.loop.mono(), world_.WallTime(), std::move(items),
                 /*parking=*/true);
  if (world_.AfterDiskUse(*this)) {
    return;
  }
  if (!status.ok()) {
    if (absl::IsDataLoss(status)) {
      world_.checker.Violation(status.ToString());
    }
    turn_->Abandon({});
    Kill("the ledger or a segment cannot be written");
    return;
  }
  if (++turns_ % kCheckEvery == 0 || turn_->core().done()) {
    if (absl::Status ok = turn_->core().CheckInvariants(); !ok.ok()) {
      world_.checker.Violation(std::string(ok.message()));
    }
  }
  if (turn_->core().done()) {
    world_.Finish();
    return;
  }
  ScheduleWake();
}

void CoordinatorProcess::ScheduleWake() {
  const Ns due = turn_->NextWake().ns;
  After(std::max<Ns>(due - world_.loop.now(), kMs), [this, turns = turns_] {
    // Another turn since then has its own wake-up.
    if (turns == turns_ && !turn_due_) {
      RunTurn();
    }
  });
}

absl::StatusOr<std::string> CoordinatorProcess::MakePlaceholder(
    const UnitId& unit, const std::string& policy_hash, int64_t version_step) {
  return PlaceholderOf(unit, policy_hash, version_step);
}

void CoordinatorProcess::OnEffect(CoordinatorCore& core, const Effect& effect) {
  switch (effect.kind) {
    case Effect::Kind::kStageComplete: {
      const int32_t next = effect.stage + 1;
      const bool rm = next < core.plan().num_stages() &&
                      core.plan().stage(next).kind == StageKind::kRm;
      core.FinishStage(effect.stage, {}, rm ? kRewardModelSteps : 0);
      break;
    }
    case Effect::Kind::kRunFailed:
      world_.checker.Violation(absl::StrCat("the run failed: ", effect.text));
      break;
    default:
      break;
  }
}

}  // namespace cox::sim
