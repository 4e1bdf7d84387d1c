#ifndef COX_LEARNER_TRAINED_MODEL_H_
#define COX_LEARNER_TRAINED_MODEL_H_

// A network, its optimizer and the steps behind its weights: what the trainers
// of a single network share (stages pretrain, sft, rft, rm, dpo, kto).

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "learner/optimizer.h"
#include "learner/state.h"
#include "learner/trainer.h"
#include "lib/engine/engine.h"

namespace cox {

class TrainedModel {
 public:
  // `name` prefixes the optimizer's sections of the state. The engine is
  // borrowed.
  TrainedModel(std::string name, TrainEngine& engine, FlatOptimizer optimizer)
      : name_(std::move(name)),
        engine_(engine),
        optimizer_(std::move(optimizer)) {}

  TrainEngine& engine() const { return engine_; }
  int64_t completed_steps() const { return step_; }

  // FAILED_PRECONDITION unless `step` comes next; `trainer` names the stage.
  absl::Status CheckNext(std::string_view trainer, int64_t step) const;

  // Updates the weights with the engine's gradients and completes `step`. Sets
  // skipped, lr and the metric named `grad_norm`.
  absl::Status Update(int64_t step, const std::string& grad_norm,
                      StepResult* result);

  // The weights under `layout`; hashed once per step, or since Load().
  absl::StatusOr<std::shared_ptr<const Snapshot>> Trained(
      const Manifest& layout);
  absl::StatusOr<std::shared_ptr<const Snapshot>> Trained() {
    return Trained(engine_.layout());
  }

  // Sections "step" and "<name>/...".
  void Save(StateWriter* writer) const;
  absl::Status Load(const StateReader& reader);

 private:
  std::string name_;
  TrainEngine& engine_;
  FlatOptimizer optimizer_;
  int64_t step_ = 0;
  std::shared_ptr<const Snapshot> snapshot_;  // of step_; null = not hashed yet
};

}  // namespace cox

#endif  // COX_LEARNER_TRAINED_MODEL_H_
