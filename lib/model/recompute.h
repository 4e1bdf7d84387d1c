#ifndef COX_LIB_MODEL_RECOMPUTE_H_
#define COX_LIB_MODEL_RECOMPUTE_H_

// Activation recomputation: a part of a network whose intermediate results are
// dropped after the forward pass and computed again in the backward pass.

#include <array>
#include <functional>

#include "ATen/core/Tensor.h"

namespace cox {

using Recomputed = std::array<at::Tensor, 3>;  // some may be undefined

// body(inputs). `body` runs twice and must give the same bits; what it borrows
// must live until the backward pass is over. Gradients of leaves that it reads
// beside `inputs` are accumulated as without.
at::Tensor Recompute(const Recomputed& inputs,
                     std::function<at::Tensor(const Recomputed&)> body);

}  // namespace cox

#endif  // COX_LIB_MODEL_RECOMPUTE_H_
