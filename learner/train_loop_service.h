#ifndef COX_LEARNER_TRAIN_LOOP_SERVICE_H_
#define COX_LEARNER_TRAIN_LOOP_SERVICE_H_

// Parts of learner_service.cc and of its training loop (train_loop_service.cc).

#include <memory>
#include <optional>
#include <string>

#include "learner/checkpoint_writer.h"
#include "learner/learner_service.h"
#include "learner/lineage_core.h"

namespace cox {

// One TRAIN assignment in progress.
struct Learner::Stage {
  cox::v1::Assignment assignment;
  StageRun run;
  bool is_ppo = false;
  int64_t resumed = 0;  // the step behind the weights it started from
  int64_t lag = 0;      // fixed_lag: versions that open units may still need
  // Rank 0 in ppo: policy versions in the store, by step.
  std::map<int64_t, std::shared_ptr<const Snapshot>> versions;
  std::optional<LineageCore> lineage;  // what comes next
  // Of the step in progress.
  BatchInput input;
  StepResult result;
  std::string last_batch;  // batch hash of the last committed step
  int64_t skipped_in_a_row = 0;
  MonoTime step_start;
  double wait_s = 0;  // of this step, for its batch
  double train_s = 0;
  double checkpoint_s = 0;  // of the step before, that it waited for
  double publish_s = 0;     // of the step before
  int64_t tokens = 0;       // of this step's trajectories
  int64_t answers = 0;
  MonoTime last_log;
  // Rank 0: the checkpoint beside training.
  std::unique_ptr<CheckpointWriter> writer;
  std::optional<CheckpointOutcome> written;  // durable, without a row yet
  int64_t checkpoint_failures = 0;
  bool checkpoint_failed = false;  // the last one
};

// A loopback port that stays bound until Release(), so that two groups that
// start together do not choose the same one.
class FreePort {
 public:
  FreePort() = default;
  ~FreePort() { Release(); }
  FreePort(const FreePort&) = delete;
  FreePort& operator=(const FreePort&) = delete;
  // INVALID_ARGUMENT: `host` is no IPv4 address of this machine.
  absl::StatusOr<int> Reserve(const std::string& host);
  void Release();

 private:
  int socket_ = -1;
};

bool ParsePortNumber(const std::string& text, int* port);

}  // namespace cox

#endif  // COX_LEARNER_TRAIN_LOOP_SERVICE_H_
