#ifndef COX_LEARNER_STAGE_SERVICE_H_
#define COX_LEARNER_STAGE_SERVICE_H_

// From the run's configuration and an assignment to a trainer with its
// engines, data and weights. Reads files; opens no socket.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cox/v1/run.pb.h"
#include "learner/checkpoint.h"
#include "learner/lm_trainer.h"
#include "learner/trainer.h"
#include "lib/comm/collective.h"
#include "lib/data/tokenizer.h"
#include "lib/engine/engine.h"
#include "lib/engine/model_config.h"

namespace cox {

// What all stages share. Borrowed members outlive everything built from it.
struct StageContext {
  cox::v1::RunConfig config;                   // resolved
  std::shared_ptr<const Tokenizer> tokenizer;  // null with tokenizer none
  // tokenizer_config.json of the run, for its checkpoints; empty = none.
  std::string tokenizer_config;
  std::optional<ChatTemplateOptions> chat;  // for rows of messages
  std::vector<int32_t> eos_ids;
  int32_t pad_id = 0;
  int64_t vocab_size = 0;
  Fs* fs = nullptr;
  Collective* group = nullptr;
  std::function<absl::StatusOr<std::unique_ptr<TrainEngine>>()> make_engine;
  // A file of the run ("comparisons.jsonl"). NOT_FOUND when there is none.
  std::function<absl::StatusOr<std::string>(const std::string& name)>
      fetch_file;
};

struct StageRun {
  std::unique_ptr<TrainEngine> policy;  // reward model in stage rm
  std::unique_ptr<TrainEngine> critic;
  std::unique_ptr<LmSource> source;       // training text, or ptx
  std::unique_ptr<StageTrainer> trainer;  // borrows all of the above
};

// Weights: of assignment.resume, else of the stage before (assignment.policy,
// assignment.reward), else model.init, else random from the seed. Checkpoints
// are verified before anything of them is used. DATA_LOSS: a checkpoint is
// damaged; INVALID_ARGUMENT / NOT_FOUND: configuration or data files.
absl::StatusOr<StageRun> BuildStage(const StageContext& context,
                                    const cox::v1::Assignment& assignment);

// The policy that the run starts from (model.init or random), or that of a
// checkpoint if `checkpoint` names one, under the name `model`.
absl::StatusOr<std::shared_ptr<const Snapshot>> StartingPolicy(
    const StageContext& context, const cox::v1::CheckpointRef& checkpoint,
    const std::string& model);

// Weights of a publish order: model.reference if that is set and ordered, else
// `folder` of the order's checkpoint, else where the run starts: reward.path or
// the starting policy. DATA_LOSS when the recorded hash is another one.
absl::StatusOr<std::shared_ptr<const Snapshot>> OrderedModel(
    const StageContext& context, const cox::v1::PublishOrder& order);

}  // namespace cox

#endif  // COX_LEARNER_STAGE_SERVICE_H_
