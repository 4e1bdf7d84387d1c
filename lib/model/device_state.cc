#include "lib/model/device_state.h"

#include <limits>
#include <utility>

#include "ATen/ops/from_blob.h"
#include "ATen/ops/zeros.h"
#include "ATen/ops/zeros_like.h"
#include "absl/strings/str_cat.h"
#include "c10/core/GradMode.h"
#include "lib/comm/nccl.h"
#include "lib/model/guard.h"

namespace cox {
namespace {

at::Tensor HostView(const float* data, size_t count) {
  return at::from_blob(const_cast<float*>(data), {static_cast<int64_t>(count)},
                       at::kFloat);
}

absl::Status Launched(const CoxGpuApi& api, int error) {
  if (error == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("GPU: ", api.error_text(error)));
}

}  // namespace

TensorState::TensorState(int64_t floats, const Kind& kind)
    : kernels_(kind.kernels) {
  const auto type = at::TensorOptions(kind.device).dtype(at::kFloat);
  parameters_ = at::zeros({floats}, type);
  gradients_ = at::zeros({floats}, type);
  m_ = at::zeros({floats}, type);
  v_ = at::zeros({floats}, type);
  if (kind.bf16_copy) {
    rounded_ = at::zeros({floats}, type.dtype(at::kBFloat16));
  }
}

void TensorState::CopyRounded() {
  if (rounded_.defined()) rounded_.copy_(parameters_);
}

std::span<float> TensorState::HostParameters() {
  c10::AutoGradMode no_grad(false);
  host_parameters_.resize(static_cast<size_t>(parameters_.numel()));
  if (!upload_) {
    HostView(host_parameters_.data(), host_parameters_.size())
        .copy_(parameters_);
  }
  upload_ = true;
  return host_parameters_;
}

std::span<float> TensorState::HostGradients() {
  c10::AutoGradMode no_grad(false);
  host_gradients_.resize(static_cast<size_t>(gradients_.numel()));
  HostView(host_gradients_.data(), host_gradients_.size()).copy_(gradients_);
  return host_gradients_;
}

void TensorState::Upload() {
  if (!upload_) return;
  c10::AutoGradMode no_grad(false);
  parameters_.copy_(HostView(host_parameters_.data(), host_parameters_.size()));
  CopyRounded();
  upload_ = false;
}

absl::Status TensorState::KeepGradients(size_t place) {
  return Guard("keeping gradients", [&]() -> absl::Status {
    if (kept_.size() <= place) kept_.resize(place + 1);
    if (!kept_[place].defined()) kept_[place] = at::zeros_like(gradients_);
    kept_[place].copy_(gradients_);
    return absl::OkStatus();
  });
}

at::Tensor TensorState::GradientRange(size_t begin, size_t count) {
  return gradients_.narrow(0, static_cast<int64_t>(begin),
                           static_cast<int64_t>(count));
}

absl::Status TensorState::AddKeptGradients(size_t place, size_t begin,
                                           size_t count) {
  return Guard("adding gradients", [&]() -> absl::Status {
    COX_CHECK(place < kept_.size());
    GradientRange(begin, count)
        .add_(kept_[place].narrow(0, static_cast<int64_t>(begin),
                                  static_cast<int64_t>(count)));
    return absl::OkStatus();
  });
}

absl::Status TensorState::StartAllReduce(Collective& group, size_t begin,
                                         size_t count) {
  return Guard("all-reduce", [&]() -> absl::Status {
    at::Tensor range = GradientRange(begin, count);
    auto* nccl = dynamic_cast<NcclCollective*>(&group);
    if (nccl != nullptr && kernels_ != nullptr) {
      NcclCall call;
      call.out = range.data_ptr<float>();
      call.count = count;
      call.producer = kernels_->current_stream();
      COX_ASSIGN_OR_RETURN(ticket_, nccl->Start(call));
      return absl::OkStatus();
    }
    host_gradients_.resize(static_cast<size_t>(gradients_.numel()));
    const std::span<float> host =
        std::span(host_gradients_).subspan(begin, count);
    HostView(host.data(), count).copy_(range);
    COX_RETURN_IF_ERROR(group.AllReduceSum(host));
    range.copy_(HostView(host.data(), count));
    return absl::OkStatus();
  });
}

absl::Status TensorState::WaitAllReduce(Collective& group) {
  if (ticket_ == 0) return absl::OkStatus();
  return dynamic_cast<NcclCollective&>(group).Wait(std::exchange(ticket_, 0));
}

absl::StatusOr<double> TensorState::SquaredGradientNorm() {
  return Guard("gradient norm", [&]() -> absl::StatusOr<double> {
    if (kernels_ == nullptr) {
      return SquaredNorm(std::span<const float>(HostGradients()));
    }
    const at::Tensor sums =
        at::zeros({1025}, gradients_.options().dtype(at::kDouble));
    double* sum = sums.data_ptr<double>();
    COX_RETURN_IF_ERROR(Launched(
        *kernels_,
        kernels_->squared_norm(gradients_.data_ptr<float>(), gradients_.numel(),
                               sum + 1, sum, kernels_->current_stream())));
    return sums.narrow(0, 0, 1).item<double>();
  });
}

absl::Status TensorState::AdamUpdate(size_t begin, size_t count,
                                     const AdamFactors<float>& f) {
  return Guard("Adam", [&]() -> absl::Status {
    Upload();
    const int64_t at = static_cast<int64_t>(begin);
    const int64_t n = static_cast<int64_t>(count);
    if (kernels_ != nullptr) {
      CoxGpuAdam args = {};
      args.device_parameters = parameters_.data_ptr<float>() + at;
      args.device_gradients = gradients_.data_ptr<float>() + at;
      args.device_m = m_.data_ptr<float>() + at;
      args.device_v = v_.data_ptr<float>() + at;
      if (rounded_.defined()) {
        args.device_bf16 = rounded_.data_ptr<at::BFloat16>() + at;
      }
      args.count = n;
      args.keep = f.keep;
      args.beta1 = f.beta1;
      args.beta2 = f.beta2;
      args.take1 = f.take1;
      args.take2 = f.take2;
      args.grad_scale = f.grad_scale;
      args.root_scale = f.root_scale;
      args.rate = f.rate;
      args.eps = f.eps;
      return Launched(*kernels_,
                      kernels_->adam(&args, kernels_->current_stream()));
    }
    // The order of operations is that of lib/algo/optim.cc.
    const auto of = [&](at::Tensor& flat) { return flat.narrow(0, at, n); };
    const at::Tensor g = of(gradients_).mul(f.grad_scale);
    at::Tensor m = of(m_), v = of(v_), p = of(parameters_);
    m.mul_(f.beta1).add_(g.mul(f.take1));
    v.mul_(f.beta2).add_(g.mul(f.take2).mul_(g));
    const at::Tensor divisor =
        v.sqrt()
            .mul_(f.root_scale)
            .add_(f.eps)
            .clamp_min_(std::numeric_limits<float>::min());
    p.mul_(f.keep).sub_(m.div(divisor).mul_(f.rate));
    if (rounded_.defined()) of(rounded_).copy_(p);
    return absl::OkStatus();
  });
}

absl::Status TensorState::ReadMoments(std::span<float> m, std::span<float> v) {
  return Guard("reading moments", [&]() -> absl::Status {
    HostView(m.data(), m.size()).copy_(m_);
    HostView(v.data(), v.size()).copy_(v_);
    return absl::OkStatus();
  });
}

absl::Status TensorState::WriteMoments(std::span<const float> m,
                                       std::span<const float> v) {
  return Guard("writing moments", [&]() -> absl::Status {
    m_.copy_(HostView(m.data(), m.size()));
    v_.copy_(HostView(v.data(), v.size()));
    return absl::OkStatus();
  });
}

absl::Status TensorState::PoisonGradients() {
  return Guard("poisoning", [&]() -> absl::Status {
    gradients_.narrow(0, 0, 1).fill_(std::numeric_limits<float>::quiet_NaN());
    return absl::OkStatus();
  });
}

}  // namespace cox
