#ifndef COX_LEARNER_OPTIMIZER_H_
#define COX_LEARNER_OPTIMIZER_H_

// Adam on the flat buffers of a TrainEngine: one norm, one pass over memory
// (docs/algorithms.md §11).

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "learner/state.h"
#include "lib/algo/optim.h"
#include "lib/base/status.h"
#include "lib/engine/engine.h"

namespace cox {

struct OptimizerOptions {
  AdamOptions adam;
  LrSchedule schedule;
  double max_grad_norm = 1.0;  // 0 = no clipping
  absl::Status Validate() const;
};

class FlatOptimizer {
 public:
  // `layout` of the engine that Apply will get. INVALID_ARGUMENT: options.
  static absl::StatusOr<FlatOptimizer> Create(const OptimizerOptions& options,
                                              const Manifest& layout);

  struct Update {
    double grad_norm = 0;  // before clipping
    double lr = 0;
    // Norm not finite: weights, moments and counters untouched. All ranks see
    // the same bits, hence the same answer.
    bool skipped = false;
  };
  // Updates Parameters() with Gradients(), the sum over all ranks
  // (Shards::Backward). `schedule_step` >= 0 is the position in the schedule, a
  // function of the step's number, so that it needs no state.
  absl::StatusOr<Update> Apply(int64_t schedule_step, TrainEngine& engine);

  int64_t updates() const { return updates_; }
  // Sections "<prefix>/m", "/v", "/updates". The engine of Apply() must live.
  void Save(std::string_view prefix, StateWriter* writer) const;
  absl::Status Load(std::string_view prefix, const StateReader& reader);

 private:
  struct Range {  // of one tensor, in floats
    size_t begin = 0;
    size_t count = 0;
    bool decay = false;
  };
  explicit FlatOptimizer(const OptimizerOptions& options) : options_(options) {}

  OptimizerOptions options_;
  std::vector<Range> ranges_;
  absl::Status CheckSizes(TrainEngine& engine) const;
  // Of the gradients; moves the moments to the engine's device.
  absl::StatusOr<double> SumOfSquares(TrainEngine& engine);

  std::vector<float> m_;  // arena layout, padding stays 0
  std::vector<float> v_;
  // Where the moments are once an update was made; null: here. Until then a
  // loaded state waits here.
  DeviceState* device_ = nullptr;
  int64_t updates_ = 0;
};

}  // namespace cox

#endif  // COX_LEARNER_OPTIMIZER_H_
