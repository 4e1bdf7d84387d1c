#ifndef COX_LEARNER_TRAINER_H_
#define COX_LEARNER_TRAINER_H_

// One stage's learning, as a function of (state, batch) -> state. Trainers own
// no socket, clock or file: engines, collective and data are given to them, so
// tests and simulators run the same code as the process.
//
// All ranks of a group call the same methods in the same order. One thread.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"
#include "lib/data/trajectory.h"
#include "lib/weights/snapshot.h"

namespace cox {

// What the coordinator froze for a step. Empty in stages that read files.
struct BatchInput {
  std::vector<Trajectory> trajectories;  // unit order
  std::string batch_sha256;              // recorded identity of the batch
  // What an operator set beta of the KL penalty to, from this step on.
  std::optional<double> kl_coef = std::nullopt;
};

struct StepResult {
  // Registry names (docs/algorithms.md §9); the same on all ranks.
  std::map<std::string, double> metrics;
  std::string batch_sha256;  // hex, of what was trained on
  // A non-finite value: no weight changed in this step, on any rank.
  bool skipped = false;
};

// A model folder of a checkpoint.
struct StageModel {
  std::string folder;  // "policy", "critic", "reward", "policy_ema"
  std::shared_ptr<const Snapshot> snapshot;
};

class StageTrainer {
 public:
  virtual ~StageTrainer() = default;

  // REQUIRES: `step` is one more than the last one (1 at the stage's start).
  // FAILED_PRECONDITION otherwise; INVALID_ARGUMENT when the batch does not
  // fit the options; the collective's and the engines' errors. After an error
  // the trainer is unusable: build a new one from the last checkpoint.
  virtual absl::StatusOr<StepResult> Step(int64_t step,
                                          const BatchInput& input) = 0;

  // The model whose content hash CommitStep records: "policy", or "reward" in
  // stage rm. Hashes all tensors; cached until the next step.
  virtual absl::StatusOr<std::shared_ptr<const Snapshot>> Trained() = 0;

  // Everything a checkpoint keeps as model folders, Trained() included.
  virtual absl::StatusOr<std::vector<StageModel>> Models() = 0;

  // Everything else that a later step reads: optimizer moments, counters,
  // controllers, shadow weights. There is no generator state: random numbers
  // are counter-based. Equal on all ranks.
  virtual std::string SaveState() const = 0;
  // Into a trainer whose engines hold the checkpoint's models. DATA_LOSS names
  // the section that is missing or has another size.
  virtual absl::Status LoadState(std::string_view state) = 0;

  // Steps behind the current weights.
  virtual int64_t completed_steps() const = 0;
};

}  // namespace cox

#endif  // COX_LEARNER_TRAINER_H_
