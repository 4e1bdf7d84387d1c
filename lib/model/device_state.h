#ifndef COX_LIB_MODEL_DEVICE_STATE_H_
#define COX_LIB_MODEL_DEVICE_STATE_H_

// A trainer's state as tensors on a device (lib/engine/engine.h). With the
// plugin's kernels on a GPU, with LibTorch's operators anywhere else; the
// results are those of lib/algo up to rounding.

#include <span>
#include <vector>

#include "ATen/core/Tensor.h"
#include "lib/engine/engine.h"
#include "lib/gpu/api.h"
#include "lib/weights/snapshot.h"

namespace cox {

class TensorState : public DeviceState {
 public:
  struct Kind {
    at::Device device;
    // Null = LibTorch's operators; else what is computed with, and `device`'s
    // memory is then what it and NCCL call device memory.
    const CoxGpuApi* kernels = nullptr;
    bool bf16_copy = false;
  };
  // `floats` zeros each.
  TensorState(int64_t floats, const Kind& kind);

  // Flat [floats] float32.
  at::Tensor& parameters() { return parameters_; }
  at::Tensor& gradients() { return gradients_; }
  // The parameters in bfloat16, undefined when not asked for. Equal to them
  // after Upload(), AdamUpdate() and CopyRounded().
  at::Tensor& rounded() { return rounded_; }
  // To be called by whoever wrote into parameters().
  void CopyRounded();
  // Copies in host memory, brought up to date. What is written into the
  // parameters reaches the device with the next Upload().
  std::span<float> HostParameters();
  std::span<float> HostGradients();
  void Upload();

  absl::Status KeepGradients(size_t place) override;
  absl::Status AddKeptGradients(size_t place, size_t begin,
                                size_t count) override;
  absl::Status StartAllReduce(Collective& group, size_t begin,
                              size_t count) override;
  absl::Status WaitAllReduce(Collective& group) override;
  absl::StatusOr<double> SquaredGradientNorm() override;
  absl::Status AdamUpdate(size_t begin, size_t count,
                          const AdamFactors<float>& factors) override;
  absl::Status ReadMoments(std::span<float> m, std::span<float> v) override;
  absl::Status WriteMoments(std::span<const float> m,
                            std::span<const float> v) override;
  absl::Status PoisonGradients() override;

 private:
  // Floats begin .. begin + count - 1.
  at::Tensor GradientRange(size_t begin, size_t count);

  const CoxGpuApi* kernels_;
  at::Tensor parameters_, rounded_, gradients_, m_, v_;
  std::vector<at::Tensor> kept_;
  std::vector<float> host_parameters_, host_gradients_;
  bool upload_ = false;
  int64_t ticket_ = 0;  // of the newest sum in NCCL, 0 = none
};

}  // namespace cox

#endif  // COX_LIB_MODEL_DEVICE_STATE_H_
