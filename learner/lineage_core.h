#ifndef COX_LEARNER_LINEAGE_CORE_H_
#define COX_LEARNER_LINEAGE_CORE_H_

// What a learner rank does next in a stage that has steps. Pure: no clock,
// socket, file or thread; the process (train_loop_service.cc) and the
// simulator (tests/sim/) carry the actions out and report back.
//
//   publish -> take batch -> train -> (checkpoint) -> commit, wait -> publish
//
// The batch of a step is asked for only after the step before was
// acknowledged (docs/durability.md, rule 12), and a version is published only
// after its step was (rule 16). A checkpoint is written before the commit that
// carries it, or beside the next steps and committed by itself when it is done
// (rules 13, 19); at most one is being written.

#include <cstdint>
#include <optional>

namespace cox {

// Which rules hold. All of them, except in a test that shows that the
// simulator notices when one does not.
struct LineageRules {
  bool await_commit = true;          // 12
  bool row_after_commit = true;      // 13: a checkpoint's, after its step's
  bool publish_after_commit = true;  // 16
  bool row_after_write = true;       // 19: commit a checkpoint when it is done
};

struct LineageOptions {
  int64_t total_steps = 0;
  // A checkpoint after every step that this divides, and after the last one.
  int64_t checkpoint_every = 1;
  bool has_batches = false;  // steps train on units: batches and versions
  // Rank 0 publishes, checkpoints and commits; the others follow its verdict.
  bool speaks = true;
  int64_t lag = 0;  // fixed_lag: older versions that open units may need
  bool checkpoint_beside = false;
  LineageRules rules = {};
};

struct LineageAction {
  enum class Kind {
    kPublish,          // the policy after `step`
    kTakeBatch,        // of `step`
    kTrain,            // `step`
    kCheckpoint,       // write the state after `step`; beside: begin to
    kCommit,           // `step`, with its checkpoint when `with_checkpoint`
    kRetain,           // CommitCheckpoint(`step`): its row, folders to delete
    kAwaitCheckpoint,  // until OnCheckpointWritten
    kDone,
  };
  Kind kind = Kind::kDone;
  int64_t step = 0;
  bool with_checkpoint = false;
};

// Thread-compatible. After an error of an action it is dropped with the
// process or the group's generation; a new one starts from a checkpoint.
class LineageCore {
 public:
  // `completed`: steps behind the state that was loaded.
  LineageCore(LineageOptions options, int64_t completed);

  // The same answer until one of the events below.
  LineageAction Next() const;

  // An action that Next() named is done. For kCommit: it was acknowledged; for
  // kCheckpoint with `checkpoint_beside`: the state was copied. A checkpoint
  // may become written meanwhile, so Next() may name something else by now.
  void OnDone(const LineageAction& action);
  // `checkpoint_beside`: every file is durable.
  void OnCheckpointWritten();
  // In the place of OnCheckpointWritten: the step stays without one.
  void OnCheckpointFailed();

  int64_t completed() const { return completed_; }  // acknowledged steps
  // Step of the newest checkpoint that has its row.
  int64_t checkpointed() const { return checkpointed_; }
  bool writing() const { return writing_.has_value(); }
  // Whether open units may still need the version after `step`, for a
  // checkpoint of the state after `at` (rule 16).
  bool NeedsVersion(int64_t step, int64_t at) const {
    return options_.has_batches && step >= at - options_.lag && step < at;
  }

 private:
  enum class Phase {
    kPublishOlder,  // versions that units of the loaded state may need
    kPublish,
    kBegin,  // a checkpoint beside the next steps, when one is due
    kFetch,
    kTrain,
    kCheckpoint,
    kCommit,
    kRetain,
  };

  bool Due(int64_t step) const;
  Phase AfterTraining() const;
  Phase AfterCommit() const;

  const LineageOptions options_;
  int64_t completed_;
  int64_t checkpointed_;
  int64_t older_ = 0;  // kPublishOlder
  Phase phase_ = Phase::kFetch;
  std::optional<int64_t> writing_;  // beside: step of the checkpoint
  std::optional<int64_t> written_;  // beside: done, without a row yet
};

}  // namespace cox

#endif  // COX_LEARNER_LINEAGE_CORE_H_
