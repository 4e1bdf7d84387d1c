#ifndef COX_CLI_REPLAY_STEPS_H_
#define COX_CLI_REPLAY_STEPS_H_

// Replays recorded steps of a run directory. Knows no LibTorch: engines are
// given to it.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/ledger_reader.h"
#include "cox/v1/run_config.pb.h"
#include "learner/trainer.h"
#include "lib/engine/engine.h"

namespace cox {

struct RecomputedStep {
  const StepRow* recorded = nullptr;
  bool skipped = false;
  std::string batch_sha256;
  std::string weight_hash;
  // As the step's row has them, without those that depend on the execution.
  std::map<std::string, double> metrics;
  std::shared_ptr<const Snapshot> trained;
};

struct ReplayPlan {
  int32_t stage = 0;
  int64_t first = 1;  // steps of interest; steps before are computed on the way
  int64_t last = 1;
  int ranks = 0;  // 0 = roles.learners of the run
};

class StepReplay {
 public:
  using MakeEngine =
      std::function<absl::StatusOr<std::unique_ptr<TrainEngine>>()>;

  // `run` is borrowed.
  static absl::StatusOr<StepReplay> Open(const RecordedRun& run,
                                         MakeEngine make_engine);

  const cox::v1::RunConfig& config() const { return config_; }

  // From the newest checkpoint before `first` whose files verify, else from
  // where the stage started. `told` says which, once. `on_step` gets every
  // computed step up to `last`; false ends the replay. DATA_LOSS: the weights
  // that the replay starts from are not the recorded ones.
  absl::Status Run(const ReplayPlan& plan,
                   const std::function<void(const std::string& text)>& told,
                   const std::function<bool(const RecomputedStep&)>& on_step);

 private:
  StepReplay(const RecordedRun& run, cox::v1::RunConfig config,
             MakeEngine make_engine)
      : run_(&run),
        config_(std::move(config)),
        make_engine_(std::move(make_engine)) {}
  const RecordedRun* run_;
  cox::v1::RunConfig config_;
  MakeEngine make_engine_;
};

// Where the recomputed step first leaves the record, in the order in which a
// step computes: batch, metrics, weights (with the tensor, where the record
// names its hash). nullopt = nowhere. `tolerance`: of metrics.
std::optional<std::string> FirstDivergence(const RecordedRun& run,
                                           const RecomputedStep& step,
                                           double tolerance);

}  // namespace cox

#endif  // COX_CLI_REPLAY_STEPS_H_
