#ifndef COX_LEARNER_STAGE_OPTIONS_SERVICE_H_
#define COX_LEARNER_STAGE_OPTIONS_SERVICE_H_

// RunConfig -> options of the trainers, which know no protobuf. Pure.

#include <cstdint>
#include <vector>

#include "cox/v1/run_config.pb.h"
#include "learner/lm_trainer.h"
#include "learner/ppo_trainer.h"
#include "learner/preference_trainer.h"
#include "learner/rm_trainer.h"
#include "lib/base/status.h"
#include "lib/engine/model_config.h"

namespace cox {

// Architecture of a run that starts from random weights.
absl::StatusOr<ModelConfig> ModelFromSettings(
    const cox::v1::ModelSettings& settings, int64_t vocab_size,
    const std::vector<int32_t>& eos_ids, int32_t pad_id);

// `updates`: optimizer steps of the stage, the length of the schedule.
absl::StatusOr<OptimizerOptions> ReadOptimizer(
    const cox::v1::OptimizerSettings& settings, int64_t updates);

// model.dropout, for the stages that have it.
DropoutOptions DropoutOf(const cox::v1::RunConfig& config, int32_t stage);

absl::StatusOr<LmOptions> ReadLm(const cox::v1::LmSettings& settings,
                                 int64_t total_steps);
absl::StatusOr<RmOptions> ReadRm(const cox::v1::RunConfig& config,
                                 int32_t stage, int64_t total_steps);
struct DpoStageOptions {
  PreferenceTrainOptions train;
  PreferenceOptions loss;
};
absl::StatusOr<DpoStageOptions> ReadDpo(const cox::v1::RunConfig& config,
                                        int32_t stage, int64_t total_steps);
struct KtoStageOptions {
  PreferenceTrainOptions train;
  KtoOptions loss;
};
absl::StatusOr<KtoStageOptions> ReadKto(const cox::v1::RunConfig& config,
                                        int32_t stage, int64_t total_steps);
absl::StatusOr<LmOptions> ReadRft(const cox::v1::RunConfig& config,
                                  int64_t total_steps);
absl::StatusOr<PpoOptions> ReadPpo(const cox::v1::RunConfig& config,
                                   int32_t stage, int64_t total_steps);

}  // namespace cox

#endif  // COX_LEARNER_STAGE_OPTIONS_SERVICE_H_
