#ifndef COX_COORDINATOR_CORE_TYPES_H_
#define COX_COORDINATOR_CORE_TYPES_H_

// What goes into the coordinator's core and what comes out of it.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/ledger.h"
#include "coordinator/plan.h"
#include "coordinator/retention.h"
#include "coordinator/step_record.h"
#include "lib/base/clock.h"
#include "lib/base/ids.h"
#include "lib/base/status.h"

namespace cox {

// Which rules of docs/durability.md hold. All of them: only the test that
// shows that the simulator notices a missing rule (tests/sim/) sets one false.
struct CoreRules {
  bool ack_after_commit = true;         // 3
  bool payload_before_row = true;       // 4
  bool end_at_failed_sync = true;       // 5
  bool refuse_stale_generation = true;  // 7
  bool first_result_stays = true;       // 8
  bool exact_version = true;            // 10
  bool unit_order = true;               // 11
  bool compare_and_set = true;          // 12
  bool checkpoint_of_committed = true;  // 13
  bool generation_durable = true;       // 14
  bool publish_committed_only = true;   // 16
  bool keep_two_checkpoints = true;     // 20
  bool keep_needed_payloads = true;     // 20
};

// Of the newest, for MonitorService; the ledger keeps all.
inline constexpr int64_t kEventsInMemory = 10000;

struct CoreOptions {
  absl::Duration lease = absl::Seconds(10);   // shortest lease
  absl::Duration suspect = absl::Seconds(6);  // silent for this long = dead
  int32_t world_size = 1;                     // learner ranks
  // Whether a reward model takes part (reward.kind rm).
  bool reward_model = false;
  std::string reward_address;    // a foreign RewardService (reward.kind grpc)
  bool gold_available = false;   // a lexicon is configured
  bool monitor_gold = false;     // also score ppo samples with it
  bool label_by_people = false;  // collect: labels come from a file
  bool eval_average = false;     // eval: ppo's averaged weights (ppo.ema_decay)
  std::string checkpoint_dir;
  CheckpointRetention checkpoints;
  PayloadRetention payloads;
  double audit_fraction = 0;  // units that two actors compute
  int32_t actors = 0;         // that the run is meant to have; 0 = unknown
  int32_t poison_after = 0;   // failures that make a unit suspect; 0 = off
  int32_t give_up_after = 0;  // failures after which it is given up; 0 = never
  // Committed steps that stay in memory in full; older ones that no restart
  // can need are in the ledger only.
  int64_t history_steps = 1024;
  CoreRules rules;
};

struct CoreCaller {
  std::string session;
  std::string role;  // "actor", "reward", "learner"
  std::string name;
  int64_t epoch = 0;
  int64_t generation = 0;
};

struct RegisterEvent {
  CoreCaller caller;
  std::string address;
  std::string numerics_class;
  int32_t rank = 0;
};

struct HeartbeatEvent {
  CoreCaller caller;
  std::string state;
  int64_t state_ms = 0;
  std::string waiting_for;
  std::vector<std::string> held;
  uint64_t rss_bytes = 0;
};

// A published version and who serves it now, preferred first.
struct SourceData {
  VersionRow version;
  std::vector<std::string> addresses;
  std::vector<float> canary = {};  // the publisher's; {} after a restart
  // The living publisher's offer of weight groups (lib/comm/weight_group.h);
  // "" = none.
  std::string group_address = "";
  int64_t group_generation = 0;
  int64_t live_actors = 0;
};

// What a version's newest publisher said beside the version itself. Lost in a
// restart, which costs a check and the fast path, never the version.
struct PublicationData {
  std::vector<float> canary = {};
  std::string session = "";
  std::string group_address = "";
  int64_t generation = 0;
};

struct ScorePlanData {
  std::vector<std::string> reward_addresses;
  std::string reward_hash;
  std::string reference_hash;
  bool gold = false;
  std::string address;
};

struct LeaseGrant {
  UnitId unit;
  int64_t attempt = 0;
  absl::Duration lease;
  SourceData policy;
  ScorePlanData score;
};

struct SubmitEvent {
  CoreCaller caller;
  UnitId unit;
  std::string policy_hash;
  std::string payload_sha256;
  // PolicyVersion.step that the trajectories name.
  int64_t version_step = 0;
  PayloadRef payload;  // synced already
};
enum class SubmitResult { kAccepted, kDuplicate, kAlreadyConsumed };

struct JoinEvent {
  CoreCaller caller;
  int32_t rank = 0;
  int32_t world_size = 1;
  std::string rendezvous;
};
struct JoinReply {
  bool ready = false;
  Generation generation;
  std::string rendezvous;
};

struct BatchReply {
  std::vector<BatchUnit> units;  // in batch order
  std::string batch_sha256;
  std::optional<double> kl_coef;  // an operator's, from this step on
};

struct CheckpointData {
  int64_t step = 0;
  std::string directory;
  std::string manifest_sha256;
  std::string state_sha256;
};
struct CommitStepEvent {
  CoreCaller caller;
  int32_t stage = 0;
  int64_t step = 0;
  std::string batch_sha256;
  std::string weight_hash;
  bool skipped = false;
  MetricList metrics;
  std::optional<CheckpointData> checkpoint;
};
struct CommitCheckpointEvent {
  CoreCaller caller;
  int32_t stage = 0;
  CheckpointData checkpoint;
  std::string weight_hash;
};
struct PublishEvent {
  CoreCaller caller;
  VersionRow version;  // content hash checked against the manifest already
  std::string address;
  std::vector<float> canary = {};
  std::string group_address = "";  // of its weight groups; "" = none
};

enum class AssignmentKind { kWait, kTrain, kServe, kDone, kStop };

struct PublishOrderData {
  std::string model;
  PolicyVersion version;
  std::string content_hash;  // "" = not published yet
  std::optional<CheckpointRow> checkpoint;
  std::string folder;
};

struct AssignmentData {
  int64_t serial = 0;  // of the content without progress and addresses
  AssignmentKind kind = AssignmentKind::kWait;
  int32_t stage = 0;
  std::string stage_kind;
  int64_t last_committed = 0;
  int64_t total_steps = 0;
  std::optional<CheckpointRow> resume;
  std::optional<CheckpointRow> policy;
  std::optional<CheckpointRow> reward;
  std::vector<PublishOrderData> publish;
  std::vector<SourceData> models;
};

// What happened, for parked calls, each of which waits for some of it only: a
// thousand actors that wait for a stage's end shall not be asked again at
// every submission.
enum Change : unsigned {
  kBatchChange = 1,  // a unit was accepted
  kLeaseChange = 2,  // a unit is open again
  kOtherChange = 4,  // anything else
  kAnyChange = 7,
};

enum class ControlCommand { kPause, kResume, kStop, kKlCoef };

// What the shell does after the rows of the same turn are durable.
struct Effect {
  enum class Kind {
    kStepCommitted,  // stage, step: metrics and samples
    kStageComplete,  // stage: write its outputs, then FinishStage()
    kRunFailed,      // text, exit_code
    // Carried out by CoreTurn itself:
    kSegmentRemoved,  // segment: delete its file
    kUnitGivenUp,     // submit, text: store a placeholder, RecordFailed()
  };
  Kind kind = Kind::kStepCommitted;
  int32_t stage = 0;
  int64_t step = 0;
  std::string text;
  int exit_code = 0;
  int32_t segment = 0;
  SubmitEvent submit = {};  // without payload
};

struct SessionView {
  std::string role;
  std::string name;
  std::string address;
  std::string state;
  int64_t state_ms = 0;
  std::string waiting_for;
  absl::Duration silent;
  bool alive = false;
  uint64_t rss_bytes = 0;
};
struct StageView {
  StageKind kind = StageKind::kPretrain;
  std::string state;
  int64_t step = 0;
  int64_t total_steps = 0;
};
struct StatusView {
  std::string state;  // "running", "paused", "draining", "done", "failed"
  std::vector<StageView> stages;
  int32_t current_stage = 0;
  std::vector<SessionView> sessions;
  int64_t units_pending = 0;
  int64_t units_leased = 0;
  int64_t units_submitted = 0;  // of steps that are not committed
  MetricList last_metrics;
  std::map<std::string, int32_t> wanted;    // processes, by role
  std::vector<UnitFailedRow> failed_units;  // of the whole run
  std::string failure;
  int failure_exit_code = 0;
};
struct WaitView {
  std::string who;
  std::string whom;
  std::string what;
  absl::Duration since;
};

}  // namespace cox

#endif  // COX_COORDINATOR_CORE_TYPES_H_
