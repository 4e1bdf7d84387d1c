#ifndef COX_LEARNER_STAGE_DATA_SERVICE_H_
#define COX_LEARNER_STAGE_DATA_SERVICE_H_

// Training data of a stage from the files that the configuration names.

#include <memory>
#include <vector>

#include "learner/preference_trainer.h"
#include "learner/rm_trainer.h"
#include "learner/stage_service.h"

namespace cox {

// Held-out passes and demonstrations use at most this many sequences, the
// first ones, so that measuring never dominates a stage.
inline constexpr int64_t kMaxMeasuredSequences = 1024;

struct LmData {
  std::unique_ptr<LmSource> source;
  std::vector<Sequence> heldout;
};

// INVALID_ARGUMENT / NOT_FOUND name the file (and line).
absl::StatusOr<LmData> LoadPretrainData(const StageContext& context,
                                        const ModelConfig& model);
absl::StatusOr<LmData> LoadSftData(const StageContext& context,
                                   const ModelConfig& model, int32_t stage);
// Text of ppo.ptx, or of pretrain.train.
absl::StatusOr<std::unique_ptr<LmSource>> LoadPtxText(
    const StageContext& context, const ModelConfig& model);
// What stages ppo, dpo, kto and rft measure: text of pretrain.heldout, else of
// sft.heldout, cut to the model's positions. Empty when none is named or there
// is no text.
absl::StatusOr<std::vector<Sequence>> LoadMeasuredText(
    const StageContext& context, const ModelConfig& model);
absl::StatusOr<RmData> LoadRmData(const StageContext& context,
                                  const ModelConfig& model);
absl::StatusOr<DpoData> LoadDpoData(const StageContext& context,
                                    const ModelConfig& model);
absl::StatusOr<std::vector<LabelledRow>> LoadKtoData(
    const StageContext& context, const ModelConfig& model);
// All ranked answers that stage rft chooses from.
absl::StatusOr<std::vector<Comparison>> LoadRftData(const StageContext& context,
                                                    const ModelConfig& model);

}  // namespace cox

#endif  // COX_LEARNER_STAGE_DATA_SERVICE_H_
