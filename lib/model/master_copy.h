#ifndef COX_LIB_MODEL_MASTER_COPY_H_
#define COX_LIB_MODEL_MASTER_COPY_H_

#include "ATen/core/Tensor.h"

namespace cox {

// `copy`, as if it were master.to(bfloat16), which it must equal: gradients
// reach the float32 master. Nothing is cast.
at::Tensor StandFor(const at::Tensor& master, const at::Tensor& copy);

}  // namespace cox

#endif  // COX_LIB_MODEL_MASTER_COPY_H_
