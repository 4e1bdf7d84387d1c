#ifndef COX_CLI_SCORE_CHECK_H_
#define COX_CLI_SCORE_CHECK_H_

// Rewards of recorded ppo answers computed again, by the checkpoint of the
// reward model that scored them. Knows no LibTorch: the engine is given.

#include <cstdint>
#include <string>

#include "cli/metric_check.h"
#include "coordinator/ledger_reader.h"
#include "cox/v1/run_config.pb.h"
#include "lib/engine/engine.h"

namespace cox {

// Largest difference that rounding explains: a replica scores a request as one
// batch, here it is a unit.
inline constexpr double kScoreTolerance = 1e-5;

// Folder of the reward model of a ppo stage: of stage rm before it, else
// reward.path. "" when another kind of reward scored the answers.
std::string RewardModelFolder(const RecordedRun& run,
                              const cox::v1::RunConfig& config, int32_t stage);

struct ScoreVerdict {
  int64_t answers = 0;    // compared; payloads that were deleted are not
  int64_t differing = 0;  // beyond kScoreTolerance
  double max_difference = 0;
  std::string first;  // "s4.1.0/2.0: recorded 0.5, computed 0.25"
};

// Scores the answers of the stage's committed steps in `range`; `engine` holds
// the model.
absl::StatusOr<ScoreVerdict> CheckScores(const RecordedRun& run, int32_t stage,
                                         const StepRange& range,
                                         ScoreEngine* engine);

}  // namespace cox

#endif  // COX_CLI_SCORE_CHECK_H_
