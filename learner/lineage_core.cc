#include "learner/lineage_core.h"

#include <algorithm>

namespace cox {

LineageCore::LineageCore(LineageOptions options, int64_t completed)
    : options_(options), completed_(completed), checkpointed_(completed) {
  if (options_.has_batches && options_.speaks) {
    older_ = std::max<int64_t>(0, completed - options_.lag);
    phase_ = Phase::kPublishOlder;
  }
}

bool LineageCore::Due(int64_t step) const {
  return options_.speaks && step > checkpointed_ &&
         (step == options_.total_steps ||
          step % options_.checkpoint_every == 0);
}

LineageAction LineageCore::Next() const {
  using Kind = LineageAction::Kind;
  if (written_.has_value()) {
    return {Kind::kRetain, *written_};
  }
  const int64_t next = completed_ + 1;
  switch (phase_) {
    case Phase::kPublishOlder:
      return {Kind::kPublish, older_};
    case Phase::kPublish:
      return {Kind::kPublish,
              options_.rules.publish_after_commit ? completed_ : next};
    case Phase::kBegin:
      return {writing_.has_value() ? Kind::kAwaitCheckpoint : Kind::kCheckpoint,
              completed_};
    case Phase::kFetch:
      if (completed_ >= options_.total_steps) {
        return {writing_.has_value() ? Kind::kAwaitCheckpoint : Kind::kDone,
                writing_.value_or(completed_)};
      }
      return {options_.has_batches ? Kind::kTakeBatch : Kind::kTrain, next};
    case Phase::kTrain:
      return {Kind::kTrain, next};
    case Phase::kCheckpoint:
      return {Kind::kCheckpoint, next};
    case Phase::kCommit:
      return {Kind::kCommit, next, !options_.checkpoint_beside && Due(next)};
    case Phase::kRetain:
      return {Kind::kRetain,
              options_.rules.row_after_commit ? completed_ : next};
  }
  return {};
}

LineageCore::Phase LineageCore::AfterTraining() const {
  const int64_t step = completed_ + 1;
  if (!options_.rules.publish_after_commit && options_.has_batches &&
      options_.speaks && phase_ == Phase::kTrain) {
    return Phase::kPublish;
  }
  return !options_.checkpoint_beside && Due(step) ? Phase::kCheckpoint
                                                  : Phase::kCommit;
}

LineageCore::Phase LineageCore::AfterCommit() const {
  // No unit is generated from the last version, and the stage may be over.
  if (options_.has_batches && options_.speaks &&
      completed_ < options_.total_steps &&
      options_.rules.publish_after_commit) {
    return Phase::kPublish;
  }
  return options_.checkpoint_beside && Due(completed_) ? Phase::kBegin
                                                       : Phase::kFetch;
}

void LineageCore::OnDone(const LineageAction& action) {
  if (action.kind == LineageAction::Kind::kRetain && written_.has_value()) {
    checkpointed_ = *written_;
    written_.reset();
    return;
  }
  switch (phase_) {
    case Phase::kPublishOlder:
      if (++older_ > completed_) {
        phase_ = Phase::kFetch;
      }
      return;
    case Phase::kPublish:
      if (!options_.rules.publish_after_commit) {
        phase_ = AfterTraining();
        return;
      }
      phase_ = options_.checkpoint_beside && Due(completed_) ? Phase::kBegin
                                                             : Phase::kFetch;
      return;
    case Phase::kBegin:
      phase_ = Phase::kFetch;
      if (options_.rules.row_after_write) {
        writing_ = completed_;
      } else {
        written_ = completed_;
      }
      return;
    case Phase::kFetch:
      if (completed_ >= options_.total_steps) {
        return;
      }
      if (options_.has_batches) {
        phase_ = Phase::kTrain;
        return;
      }
      phase_ = Phase::kTrain;
      [[fallthrough]];
    case Phase::kTrain:
      phase_ = AfterTraining();
      return;
    case Phase::kCheckpoint:
      phase_ =
          options_.rules.row_after_commit ? Phase::kCommit : Phase::kRetain;
      return;
    case Phase::kCommit: {
      const bool retain = !options_.checkpoint_beside && Due(completed_ + 1) &&
                          options_.rules.row_after_commit;
      ++completed_;
      phase_ = retain ? Phase::kRetain : AfterCommit();
      return;
    }
    case Phase::kRetain:
      if (!options_.rules.row_after_commit) {
        phase_ = Phase::kCommit;
        return;
      }
      checkpointed_ = completed_;
      phase_ = AfterCommit();
      return;
  }
}

void LineageCore::OnCheckpointWritten() {
  written_ = writing_;
  writing_.reset();
}

void LineageCore::OnCheckpointFailed() {
  writing_.reset();
  // A stage ends with a checkpoint: the last one is tried again.
  if (phase_ == Phase::kFetch && completed_ >= options_.total_steps) {
    phase_ = Phase::kBegin;
  }
}

}  // namespace cox
