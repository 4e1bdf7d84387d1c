#ifndef COX_LIB_ENGINE_ENGINE_OPTIONS_H_
#define COX_LIB_ENGINE_ENGINE_OPTIONS_H_

// How a process computes; of a run: EngineOptionsOf (lib/rpc/proto_convert.h).

#include <cstdint>
#include <string>

struct CoxGpuApi;  // lib/gpu/api.h

namespace cox {

struct EngineOptions {
  std::string device = "cpu";  // cpu | cuda
  int threads = 1;             // compute threads of the process
  // fp32 | bf16: what projections, attention and the activations between them
  // are computed in. Weights of a trainer, gradients, norms, embeddings, the
  // head, log-softmax and losses are float32 in both.
  std::string dtype = "fp32";
  // Training keeps a layer's input only and computes the layer again in the
  // backward pass: less memory, a third more time, the same bits.
  bool recompute = false;
  // On a CPU too, compute as on a GPU: LibTorch's operators instead of our
  // loops, and a trainer's state apart from the host's (DeviceState). So a
  // machine without a GPU tests what one with a GPU runs.
  bool portable = false;
  // With `portable`, for tests: functions that stand for the plugin's and work
  // on host memory.
  const CoxGpuApi* kernels = nullptr;
  // Upper bound of rows * vocabulary held as logits at once.
  int64_t max_logit_elements = int64_t{1} << 24;
  // LibTorch's blocked attention kernel, or the plain formula.
  bool fused_attention = true;
};

}  // namespace cox

#endif  // COX_LIB_ENGINE_ENGINE_OPTIONS_H_
