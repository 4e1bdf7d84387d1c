#ifndef COX_COORDINATOR_CORE_H_
#define COX_COORDINATOR_CORE_H_

// The coordinator's decisions, as a state machine without clock, files,
// sockets or threads: event in; reply, ledger rows and effects out.
//
// The shell calls AdvanceTo(now), then events, then takes the rows with
// TakeRows(), commits them in one synced transaction, and only then lets the
// replies go and carries out TakeEffects(). When a commit fails the process
// ends: memory is then ahead of the ledger.
//
// Rules and the invariants of CheckInvariants(): docs/durability.md.
//
// Errors of all events: NOT_FOUND (kUnknownSession: register first),
// FAILED_PRECONDITION (kStaleEpoch, kStaleGeneration), PERMISSION_DENIED (the
// session has another role), INVALID_ARGUMENT.
// Thread-compatible: one thread owns it.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/core_parts.h"
#include "coordinator/core_types.h"
#include "coordinator/kl_control.h"
#include "coordinator/ledger.h"
#include "coordinator/plan.h"
#include "coordinator/scaler_core.h"

namespace cox {

class CoordinatorCore {
 public:
  // `state` is what the ledger holds; `epoch` this incarnation. DATA_LOSS when
  // the rows contradict the plan or each other.
  static absl::StatusOr<std::unique_ptr<CoordinatorCore>> Create(
      CoreOptions options, RunPlan plan, const LedgerState& state, Epoch epoch,
      MonoTime now);

  // Moves time. A gap of more than a second is this process's own stall, not
  // silence of the others: all expiries move along.
  void AdvanceTo(MonoTime now, double wall_time_s);
  void Tick();  // expiries; after AdvanceTo

  // --- Sessions
  absl::Status Register(const RegisterEvent& event);
  absl::StatusOr<bool> Heartbeat(const HeartbeatEvent& event);  // true = stop
  absl::Status Drain(const CoreCaller& caller, const std::string& reason);
  absl::Status ReportHeld(const CoreCaller& caller,
                          const std::vector<std::string>& hashes,
                          const std::string& address,
                          const std::string& damaged = "");
  // The connection of a caller that waited for an answer has broken. It is
  // lost unless it calls again within half a second.
  void CallerGone(const std::string& session);
  absl::StatusOr<AssignmentData> GetAssignment(const CoreCaller& caller);

  // --- Units
  // At most `max_units` grants, oldest first; empty = nothing now.
  absl::StatusOr<std::vector<LeaseGrant>> Lease(const CoreCaller& caller,
                                                int32_t max_units);
  absl::StatusOr<std::vector<bool>> Renew(const CoreCaller& caller,
                                          const std::vector<UnitId>& units);
  // Whether Submit() of this header would store a payload: saves writing it
  // otherwise. Errors as Submit.
  absl::StatusOr<bool> WantsPayload(const SubmitEvent& event);
  // FAILED_PRECONDITION: wrong or stale version, or a unit that is not open.
  // DATA_LOSS: another result is recorded in a deterministic mode (it stays).
  absl::StatusOr<SubmitResult> Submit(const SubmitEvent& event);
  absl::Status Return(const CoreCaller& caller,
                      const std::vector<UnitId>& units);
  // The caller could not make a result of them, or it was refused.
  absl::Status ReturnFailed(const CoreCaller& caller,
                            const std::vector<UnitId>& units,
                            const std::string& why);
  // After kUnitGivenUp: its placeholder is synced.
  void RecordFailed(const SubmitEvent& placeholder, const std::string& why);

  // --- Learners
  absl::StatusOr<JoinReply> Join(const JoinEvent& event);
  // Nothing = the batch is not complete.
  absl::StatusOr<std::optional<BatchReply>> TakeBatch(const CoreCaller& caller,
                                                      int32_t stage,
                                                      int64_t step);
  // True = replayed. DATA_LOSS: recorded hashes differ; the run fails.
  absl::StatusOr<bool> CommitStep(const CommitStepEvent& event);
  absl::Status Publish(const PublishEvent& event);
  absl::StatusOr<std::string> BeginCheckpoint(const CoreCaller& caller,
                                              int32_t stage, int64_t step);
  // Directories to delete. Idempotent.
  absl::StatusOr<std::vector<std::string>> CommitCheckpoint(
      const CommitCheckpointEvent& event);
  std::vector<CheckpointRow> LatestCheckpoints(int32_t stage) const;

  // --- Stages and control
  // After kStageComplete: the outputs are durable; the next stage starts.
  // `next_total_steps` replaces the plan's when it is positive.
  void FinishStage(int32_t stage, const MetricList& metrics,
                   int64_t next_total_steps);
  void SetStageState(const std::string& state);  // of the current stage
  // Returns the first step that sees it; 0 = at once.
  int64_t Control(ControlCommand command, double kl_coef = 0);
  // How many processes of a role there shall be; whoever started them reads
  // it in the status.
  void Scale(const std::string& role, int32_t replicas);
  void Fail(const std::string& text, int exit_code);
  void AddEvent(const std::string& kind, const std::string& text);
  void SetMeta(const std::string& key, const std::string& value);

  // --- Views
  const RunPlan& plan() const { return plan_; }
  const CoreRules& rules() const { return options_.rules; }
  Epoch epoch() const { return epoch_; }
  Generation generation() const { return generation_; }
  int32_t current_stage() const { return current_; }
  bool done() const { return current_ == plan_.num_stages(); }
  bool draining() const { return draining_; }
  int64_t committed() const;  // of the current stage
  int64_t live_sessions() const;
  std::optional<SourceData> Target(const std::string& model) const;
  StatusView Status() const;
  LoadView Load() const;  // for the autoscaler
  std::map<std::string, int64_t> OpenUnitsOfActors() const;  // by live name
  std::vector<WaitView> Waits() const;
  // By number. Of forgotten ones (CoreOptions::history_steps) only those with a
  // checkpoint are there, and have no hashes.
  const std::map<int64_t, StepRow>& Steps(int32_t stage) const;
  int64_t LastStep(int32_t stage) const;  // committed; 0 = none
  const std::vector<EventRow>& events() const { return events_; }
  const std::map<int32_t, StageRow>& stage_rows() const { return stage_rows_; }
  // Of the current stage, in unit order.
  std::vector<UnitRow> SubmittedUnits(int64_t step) const;
  // What the committed or frozen step trains on, in batch order.
  std::vector<UnitRow> UnitsOfStep(int32_t stage, int64_t step) const;
  // DATA_LOSS: a segment with units of the step is deleted (retention).
  absl::Status CheckPayloadsKept(int32_t stage, int64_t step) const;
  absl::Status CheckInvariants() const;
  // Since the last TakeChanges().
  bool has_changes() const { return changes_ != 0; }
  unsigned TakeChanges() { return std::exchange(changes_, 0u); }

  std::vector<LedgerRow> TakeRows() { return std::exchange(rows_, {}); }
  std::vector<Effect> TakeEffects() { return std::exchange(effects_, {}); }

 private:
  using UnitKey = CoreUnitKey;
  using Session = CoreSession;
  using UnitLease = CoreLease;
  using Member = CoreMember;
  using AuditResult = CoreAuditResult;

  CoordinatorCore(CoreOptions options, RunPlan plan, Epoch epoch, MonoTime now);
  absl::Status Recover(const LedgerState& state);
  absl::Status RecoverStages(const LedgerState& state);
  absl::Status RecoverUnits(const LedgerState& state);
  void Record(LedgerRow row) { rows_.push_back(std::move(row)); }
  void Changed(Change what = kAnyChange) { changes_ |= what; }

  absl::StatusOr<Session*> Find(const CoreCaller& caller,
                                std::string_view role = "");
  absl::StatusOr<Session*> FindMember(const CoreCaller& caller);
  void SetHeld(const std::string& id, Session& session,
               std::set<std::string> held);
  void ReleaseLeases(const std::string& session);
  void LoseSession(const std::string& id, Session& session);  // until it calls
  void EndSession(const std::string& id);
  bool HasLiveHolder(const std::string& hash) const;
  // Whether `id` is alive and registered after `session`.
  bool IsYounger(const std::string& id, const Session& session) const;
  SourceData Source(const VersionRow& version, const std::string& asking) const;

  const VersionRow* FindVersion(const std::string& model,
                                PolicyVersion version) const;
  const VersionRow* FindPolicyByHash(const std::string& hash) const;
  void OpenUnits();
  bool StepIsComplete(int64_t step) const;
  void CheckStageComplete();
  void EnterStage();
  std::optional<ScorePlanData> MakeScorePlan() const;
  bool NeedsReference() const;
  bool NeedsRewardModel() const;
  absl::Duration LeaseDuration() const;
  void LeasePlanned(const std::string& session, int32_t max_units,
                    const ScorePlanData& score,
                    std::vector<LeaseGrant>& grants);
  void LeaseStreaming(const std::string& session, int32_t max_units,
                      const ScorePlanData& score,
                      std::vector<LeaseGrant>& grants);
  LeaseGrant Grant(const std::string& session, UnitKey key,
                   const VersionRow& version, const ScorePlanData& score);
  const VersionRow* NewestHeldPolicy() const;
  int64_t StreamingCapacity() const;
  bool Freeze(int64_t step);
  absl::StatusOr<std::optional<SubmitResult>> JudgeSubmit(
      const SubmitEvent& event);
  absl::Status CheckSubmitVersion(const SubmitEvent& event) const;
  void AcceptUnit(const SubmitEvent& event);

  // core_audit.cc
  bool IsAudited(const UnitId& unit) const;
  bool HasOtherActor(const std::vector<AuditResult>& results) const;
  absl::StatusOr<SubmitResult> AuditUnit(const SubmitEvent& event);
  bool MayCompute(const std::string& session, UnitKey key) const;
  void Quarantine(const std::string& session, const std::string& why);
  void TickAudits();
  void RecoverScale(const ControlRow& row);
  bool LoneByPlan() const;
  void AcceptUnaudited(const SubmitEvent& event);

  // core_failed_units.cc. The unit must be in `pending_`.
  void CountDeath(const UnitLease& lease, UnitKey key);
  void CountFailure(UnitKey key, const std::string& what);

  // core_history.cc
  int64_t ForgottenUpTo(int32_t stage) const;
  absl::Status CheckRemembered(int32_t stage, int64_t step) const;
  void ForgetHistory();
  void ForgetUnits(int64_t step);
  bool IsForgotten(UnitKey key) const;

  // core_retention.cc
  std::vector<std::string> DropCheckpoints(int32_t stage);
  bool IsRetired(int32_t stage, int64_t step) const;
  void DropSegments();
  void RecoverSegments(const LedgerState& state);

  absl::Status CheckBatch(const CommitStepEvent& event);
  absl::StatusOr<bool> ReplayStep(const CommitStepEvent& event);
  absl::Status RecordCheckpoint(const CoreCaller& caller, int32_t stage,
                                const CheckpointData& checkpoint,
                                const std::string& weight_hash);
  absl::Status CheckPublishable(const VersionRow& version) const;
  std::optional<CheckpointRow> NewestCheckpoint(int32_t stage) const;
  std::vector<PublishOrderData> PublishOrders() const;
  AssignmentData LearnerAssignment() const;
  AssignmentData RewardAssignment() const;

  const CoreOptions options_;
  RunPlan plan_;
  const Epoch epoch_;
  MonoTime now_;
  double wall_time_s_ = 0;
  unsigned changes_ = kAnyChange;  // of enum Change
  std::vector<LedgerRow> rows_;
  std::vector<Effect> effects_;

  // Durable
  Generation generation_;
  int32_t current_ = 0;
  std::map<int32_t, StageRow> stage_rows_;
  std::map<int32_t, std::map<int64_t, StepRow>> steps_;
  std::map<std::pair<int32_t, int64_t>, CheckpointRow> checkpoints_;
  std::map<std::pair<std::string, PolicyVersion>, VersionRow> versions_;
  std::map<UnitKey, UnitRow> submitted_;  // of the current stage
  std::map<int64_t, int32_t> submitted_in_step_;
  std::map<int64_t, BatchRow> batches_;  // of the current stage (streaming)
  std::map<UnitId, UnitFailedRow> failed_;
  SegmentBook book_;
  std::vector<EventRow> events_;  // the newest kMaxEvents
  int64_t next_event_ = 1;
  int64_t next_control_ = 1;
  bool paused_ = false;
  std::map<std::string, int32_t> wanted_;  // processes, by role
  KlCoefficients kl_coefs_;

  // Volatile
  std::map<std::string, Session> sessions_;
  int64_t next_session_ = 1;
  std::map<std::string, std::set<std::string>> holders_;  // hash -> sessions
  mutable std::map<std::string, int64_t> handed_out_;     // address -> times
  std::map<std::string, std::string> numerics_;           // role -> class
  std::set<UnitKey> pending_;
  std::map<UnitKey, UnitLease> leases_;
  std::map<UnitKey, int64_t> attempts_;
  CoreAudits audit_;
  CoreFailures failing_;
  std::map<std::string, PublicationData> publications_;  // by content hash
  std::vector<absl::Duration> unit_times_;  // ring of the last ones
  size_t unit_time_next_ = 0;
  int64_t next_step_to_open_ = 1;
  int64_t planned_units_ = 0;  // opened or issued in the current stage
  std::set<UnitKey> queue_;    // streaming: submitted, in no batch
  CoreHistory history_;
  std::map<int32_t, Member> members_;
  std::map<int32_t, Member> joiners_;
  bool group_valid_ = true;
  bool stage_complete_sent_ = false;
  bool draining_ = false;
  std::string failure_;
  int failure_exit_code_ = 0;
};

}  // namespace cox

#endif  // COX_COORDINATOR_CORE_H_
