#include "lib/model/layers.h"

#include "ATen/ops/cat.h"
#include "ATen/ops/empty_like.h"
#include "ATen/ops/gelu.h"
#include "ATen/ops/rsqrt.h"
#include "c10/core/GradMode.h"
#include "c10/util/Exception.h"
#include "lib/gpu/loader.h"

namespace cox {
namespace {

// Null unless the plugin's kernels can stand for a pass without gradients.
const CoxGpuApi* KernelsFor(const at::Tensor& x, const at::Tensor& weight) {
  const bool known =
      x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
  if (!x.is_cuda() || !known || weight.scalar_type() != at::kFloat ||
      c10::GradMode::is_enabled()) {
    return nullptr;
  }
  const auto api = LoadGpu();
  return api.ok() ? *api : nullptr;
}

// One launch instead of five.
at::Tensor FusedRmsNorm(const CoxGpuApi& api, const at::Tensor& x,
                        const at::Tensor& weight, double eps) {
  const at::Tensor rows = x.contiguous();
  const at::Tensor scale = weight.contiguous();
  at::Tensor out = at::empty_like(rows);
  const int64_t width = rows.size(-1);
  const int error = api.rms_norm(
      rows.scalar_type() == at::kBFloat16 ? COX_GPU_BF16 : COX_GPU_F32,
      rows.const_data_ptr(), scale.const_data_ptr<float>(),
      rows.numel() / width, width, static_cast<float>(eps), out.data_ptr(),
      api.current_stream());
  TORCH_CHECK(error == 0, "GPU RMSNorm: ", api.error_text(error));
  return out;
}

}  // namespace

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (const CoxGpuApi* api = KernelsFor(x, weight)) {
    return FusedRmsNorm(*api, x, weight, eps);
  }
  const at::Tensor wide = x.to(weight.scalar_type());
  at::Tensor inverse =
      at::rsqrt(wide.pow(2).mean(/*dim=*/{-1}, /*keepdim=*/true).add(eps));
  return wide.mul(inverse).mul(weight).to(x.scalar_type());
}

at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos,
                  const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  at::Tensor turned = at::cat(
      {x.narrow(-1, half, half).neg(), x.narrow(-1, 0, half)}, /*dim=*/-1);
  return x.mul(cos).add(turned.mul(sin));
}

at::Tensor Gelu(const at::Tensor& x, bool approximate) {
  return at::gelu(x, approximate ? "tanh" : "none");
}

}  // namespace cox
