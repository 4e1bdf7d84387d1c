#ifndef COX_LIB_MODEL_LINEAR_H_
#define COX_LIB_MODEL_LINEAR_H_

// Matrix products through oneDNN where LibTorch has it: its float32 kernels
// take AVX-512 on every CPU that has it, while MKL falls back to AVX2 on CPUs
// of other makers (2.3 times slower there). Other dtypes and builds go through
// LibTorch's own products. A new row count compiles a new kernel, so callers
// round row counts up.

#include "ATen/core/Tensor.h"

namespace cox {

// Row counts are rounded up to a multiple of this in training and scoring.
inline constexpr int64_t kRowRounding = 32;

// a [M, K] times b [K, N] plus bias [N] (may be undefined); both may be
// transposed views. No graph is recorded.
at::Tensor MatMul(const at::Tensor& a, const at::Tensor& b,
                  const at::Tensor& bias = at::Tensor());

// x weight + bias with graph where gradients are enabled. `weight` is [in,
// out] if `input_major` (GPT-2's Conv1D), else [out, in]; bias may be
// undefined.
at::Tensor Affine(const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias, bool input_major);

}  // namespace cox

#endif  // COX_LIB_MODEL_LINEAR_H_
