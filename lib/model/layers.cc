#include "lib/model/layers.h"

#include "ATen/ops/cat.h"
#include "ATen/ops/gelu.h"
#include "ATen/ops/rsqrt.h"

namespace cox {

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  at::Tensor inverse =
      at::rsqrt(x.pow(2).mean(/*dim=*/{-1}, /*keepdim=*/true).add(eps));
  return x.mul(inverse).mul(weight);
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
