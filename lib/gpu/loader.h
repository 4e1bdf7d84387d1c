#ifndef COX_LIB_GPU_LOADER_H_
#define COX_LIB_GPU_LOADER_H_

// Makes this process able to compute on a GPU: driver, LibTorch's CUDA half and
// libcox_gpu.so, all with dlopen, so that the same binary runs where none of
// them exists. LibTorch-free.

#include <string>

#include "lib/base/status.h"
#include "lib/gpu/api.h"

namespace cox {

// Loads everything once per process; later calls give the first answer.
// Afterwards LibTorch knows the device "cuda". NOT_FOUND, one line
// with what is missing and how to get it: the driver, a GPU, libtorch_cuda.so,
// a library that it needs, the plugin, or a plugin of another version.
// Thread-safe.
absl::StatusOr<const CoxGpuApi*> LoadGpu();

// $COX_GPU_PLUGIN, else beside this executable or in ../lib of it; "" = none.
std::string GpuPluginPath();
// Opens a plugin whose needs are met. NOT_FOUND as LoadGpu().
absl::StatusOr<const CoxGpuApi*> OpenGpuPlugin(const std::string& path);

}  // namespace cox

#endif  // COX_LIB_GPU_LOADER_H_
