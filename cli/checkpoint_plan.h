#ifndef COX_CLI_CHECKPOINT_PLAN_H_
#define COX_CLI_CHECKPOINT_PLAN_H_

// How much disk the checkpoints of a run will take, before it starts.

#include <cstdint>
#include <string>
#include <vector>

#include "lib/config/config.h"

namespace cox {

struct StageCheckpoints {
  std::string stage;   // "ppo"
  uint64_t bytes = 0;  // of one checkpoint: weights and optimizer state
  int64_t kept = 0;    // at the end of the stage
};

struct CheckpointPlan {
  std::string directory;
  std::vector<StageCheckpoints> stages;
  uint64_t total_bytes = 0;  // kept, and the largest one being written besides
  uint64_t there_bytes = 0;  // of them, written by earlier starts of the run
  uint64_t free_bytes = 0;   // on the disk of `directory`
  std::string Text() const;
  // INVALID_ARGUMENT when they cannot fit: what is needed, what is there.
  absl::Status CheckFits() const;
};

// Sizes are those of float32 weights and moments, a few kB of text left out;
// where a stage's steps are not known yet (rm, dpo, ...), as if there were
// enough of them. INVALID_ARGUMENT, NOT_FOUND: the model.
absl::StatusOr<CheckpointPlan> PlanCheckpoints(const cox::v1::RunConfig& config,
                                               const std::string& run_dir);

}  // namespace cox

#endif  // COX_CLI_CHECKPOINT_PLAN_H_
