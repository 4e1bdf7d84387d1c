#ifndef COX_LIB_MODEL_DEVICE_STATE_H_
#define COX_LIB_MODEL_DEVICE_STATE_H_

// A trainer's state as tensors on a device (lib/engine/engine.h). With the
// plugin's kernels on a GPU, with LibTorch's operators anywhere else; the
// results are those of lib/algo up to rounding.

#include <span>
#include <vector>

#include "ATen/core/Tensor.h"
#include "lib/engine/engine.h"
#include "lib/weights/snapshot.h"

namespace cox {

class TensorState : public DeviceState {
 public:
  // `floats` zeros each.
  TensorState(int64_t floats, at::Device device);

  // Flat [floats] float32.
  at::Tensor& parameters() { return parameters_; }
  at::Tensor& gradients() { return gradients_; }
  // Copies in host memory, brought up to date. What is written into the
  // parameters reaches the device with the next Upload().
  std::span<float> HostParameters();
  std::span<float> HostGradients();
  void Upload();

  absl::Status KeepGradients(size_t place) override;
  absl::Status AddKeptGradients(size_t place) override;
  absl::Status AllReduceGradients(Collective& group) override;
  absl::StatusOr<double> SquaredGradientNorm() override;
  absl::Status AdamUpdate(size_t begin, size_t count,
                          const AdamFactors<float>& factors) override;
  absl::Status ReadMoments(std::span<float> m, std::span<float> v) override;
  absl::Status WriteMoments(std::span<const float> m,
                            std::span<const float> v) override;
  absl::Status PoisonGradients() override;

 private:
  at::Tensor parameters_, gradients_, m_, v_;
  std::vector<at::Tensor> kept_;
  std::vector<float> host_parameters_, host_gradients_;
  bool upload_ = false;
};

}  // namespace cox

#endif  // COX_LIB_MODEL_DEVICE_STATE_H_
