#include "learner/trained_model.h"

#include "absl/strings/str_cat.h"

namespace cox {

absl::Status TrainedModel::CheckNext(std::string_view trainer,
                                     int64_t step) const {
  if (step == step_ + 1) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(std::string(trainer), " trainer: expected step ", step_ + 1,
                   ", found ", step));
}

absl::Status TrainedModel::Update(int64_t step, const std::string& grad_norm,
                                  StepResult* result) {
  snapshot_ = nullptr;
  COX_ASSIGN_OR_RETURN(const FlatOptimizer::Update update,
                       optimizer_.Apply(step - 1, engine_));
  step_ = step;
  result->skipped = update.skipped;
  result->metrics["lr"] = update.lr;
  result->metrics[grad_norm] = update.grad_norm;
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Snapshot>> TrainedModel::Trained(
    const Manifest& layout) {
  if (snapshot_ == nullptr) {
    COX_ASSIGN_OR_RETURN(snapshot_,
                         SnapshotFromFloats(layout, engine_.Parameters()));
  }
  return snapshot_;
}

void TrainedModel::Save(StateWriter* writer) const {
  writer->PutInt("step", step_);
  optimizer_.Save(name_, writer);
}

absl::Status TrainedModel::Load(const StateReader& reader) {
  COX_ASSIGN_OR_RETURN(step_, reader.Int("step"));
  snapshot_ = nullptr;
  return optimizer_.Load(name_, reader);
}

}  // namespace cox
