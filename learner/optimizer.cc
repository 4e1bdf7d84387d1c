#include "learner/optimizer.h"

#include <cmath>
#include <span>

#include "absl/strings/str_cat.h"
#include "lib/base/log.h"

namespace cox {

absl::Status OptimizerOptions::Validate() const {
  COX_RETURN_IF_ERROR(adam.Validate());
  COX_RETURN_IF_ERROR(schedule.Validate());
  return CheckNotNegative("max_grad_norm", max_grad_norm);
}

absl::StatusOr<FlatOptimizer> FlatOptimizer::Create(
    const OptimizerOptions& options, const Manifest& layout) {
  COX_RETURN_IF_ERROR(options.Validate());
  FlatOptimizer optimizer(options);
  for (const TensorInfo& tensor : layout.tensors) {
    if (tensor.dtype != DType::kF32) {
      return absl::InvalidArgumentError(absl::StrCat(
          "optimizer: tensor ", tensor.name, ": expected F32, found ",
          std::string(DTypeName(tensor.dtype))));
    }
    optimizer.ranges_.push_back(
        {static_cast<size_t>(tensor.offset / sizeof(float)),
         static_cast<size_t>(tensor.bytes / sizeof(float)),
         HasWeightDecay(tensor.name, tensor.shape)});
  }
  const size_t floats = static_cast<size_t>(layout.arena_bytes) / sizeof(float);
  optimizer.m_.assign(floats, 0.0f);
  optimizer.v_.assign(floats, 0.0f);
  return optimizer;
}

absl::Status FlatOptimizer::CheckSizes(TrainEngine& engine) const {
  const size_t parameters = engine.Parameters().size();
  const size_t gradients = engine.Gradients().size();
  if (parameters == m_.size() && gradients == m_.size()) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(
      "optimizer: expected ", m_.size(), " floats, the engine has ", parameters,
      " parameters and ", gradients, " gradients"));
}

absl::StatusOr<double> FlatOptimizer::SumOfSquares(TrainEngine& engine) {
  if (DeviceState* device = engine.device()) {
    if (device_ == nullptr) {
      COX_RETURN_IF_ERROR(device->WriteMoments(m_, v_));
      device_ = device;
    }
    return device->SquaredGradientNorm();
  }
  COX_RETURN_IF_ERROR(CheckSizes(engine));
  return SquaredNorm(std::span<const float>(engine.Gradients()));
}

absl::StatusOr<FlatOptimizer::Update> FlatOptimizer::Apply(
    int64_t schedule_step, TrainEngine& engine) {
  COX_ASSIGN_OR_RETURN(const double squares, SumOfSquares(engine));
  Update update;
  update.lr = options_.schedule.At(schedule_step);
  update.grad_norm = std::sqrt(squares);
  ClipDecision clip;
  if (options_.max_grad_norm > 0) {
    clip = ClipScale(update.grad_norm, options_.max_grad_norm);
  } else {
    clip.skip = !std::isfinite(update.grad_norm);
  }
  if (clip.skip) {
    update.skipped = true;
    return update;
  }
  ++updates_;
  for (const Range& range : ranges_) {
    const AdamStep step = {.step = updates_,
                           .lr = update.lr,
                           .grad_scale = clip.scale,
                           .decay = range.decay};
    if (device_ != nullptr) {
      COX_RETURN_IF_ERROR(device_->AdamUpdate(
          range.begin, range.count, AdamFactorsOf<float>(options_.adam, step)));
      continue;
    }
    AdamUpdate<float>(options_.adam, step,
                      engine.Parameters().subspan(range.begin, range.count),
                      engine.Gradients().subspan(range.begin, range.count),
                      std::span(m_).subspan(range.begin, range.count),
                      std::span(v_).subspan(range.begin, range.count));
  }
  return update;
}

void FlatOptimizer::Save(std::string_view prefix, StateWriter* writer) const {
  const std::string base(prefix);
  if (device_ == nullptr) {
    writer->PutFloats(base + "/m", m_);
    writer->PutFloats(base + "/v", v_);
  } else {
    std::vector<float> m(m_.size()), v(v_.size());
    const absl::Status read = device_->ReadMoments(m, v);
    if (!read.ok()) {
      LogError("the device lost the optimizer's state",
               {Field("error", read.ToString())});
    }
    // Nothing can go on from here; the last checkpoint can.
    COX_CHECK(read.ok());
    writer->PutFloats(base + "/m", m);
    writer->PutFloats(base + "/v", v);
  }
  writer->PutInt(base + "/updates", updates_);
}

absl::Status FlatOptimizer::Load(std::string_view prefix,
                                 const StateReader& reader) {
  const std::string base(prefix);
  COX_RETURN_IF_ERROR(reader.Floats(base + "/m", m_));
  COX_RETURN_IF_ERROR(reader.Floats(base + "/v", v_));
  COX_ASSIGN_OR_RETURN(updates_, reader.Int(base + "/updates"));
  device_ = nullptr;  // the next update brings them there
  return absl::OkStatus();
}

}  // namespace cox
