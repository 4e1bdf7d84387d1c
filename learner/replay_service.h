#ifndef COX_LEARNER_REPLAY_SERVICE_H_
#define COX_LEARNER_REPLAY_SERVICE_H_

// Logged steps of a stage computed again, offline: the trainer, its data and
// its ranks are those of the learner process (BuildStage), only the collective
// is one of threads. Opens no socket, writes nothing.

#include <cstdint>
#include <functional>
#include <memory>

#include "learner/stage_service.h"

namespace cox {

struct ReplayedStep {
  int64_t step = 0;   // 0 or the checkpoint's: the state that it starts from
  StepResult result;  // empty then
  std::shared_ptr<const Snapshot> trained;
};

struct ReplayOptions {
  StageContext context;  // without a group; used by all ranks at once
  cox::v1::Assignment assignment;
  int ranks = 1;
  int64_t last = 0;  // step
  // The recorded batch of a step; called by every rank. Not given: a stage
  // that reads files.
  std::function<absl::StatusOr<BatchInput>(int64_t step)> batch;
  // On rank 0, after the start and after every step. False = enough.
  std::function<bool(const ReplayedStep& step)> on_step;
};

// Errors of BuildStage, of `batch` and of the trainer.
absl::Status ReplayStage(const ReplayOptions& options);

}  // namespace cox

#endif  // COX_LEARNER_REPLAY_SERVICE_H_
