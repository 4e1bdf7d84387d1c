#ifndef COX_LIB_MODEL_LAYERS_H_
#define COX_LIB_MODEL_LAYERS_H_

// Row-wise pieces of the networks (docs/algorithms.md §12), in the dtype of
// their input.

#include "ATen/core/Tensor.h"

namespace cox {

// x / sqrt(mean(x²) + eps) over the last dimension, THEN times the weight.
// Computed in the weight's dtype, rounded to that of x.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// x cos + rotate_half(x) sin over the last dimension, where rotate_half is
// (-second half, first half) of each head: no interleaved pairs.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos,
                  const at::Tensor& sin);

// `approximate`: gelu_new, GPT-2's with tanh; else the erf form.
at::Tensor Gelu(const at::Tensor& x, bool approximate);

}  // namespace cox

#endif  // COX_LIB_MODEL_LAYERS_H_
