#ifndef COX_CLI_DOCTOR_GPU_H_
#define COX_CLI_DOCTOR_GPU_H_

// The GPU section of `cox doctor`: what `device: cuda` and `collective: nccl`
// would find, read from files; nothing is loaded.

#include <string>
#include <vector>

#include "lib/comm/cuda_search.h"

namespace cox {

struct GpuRow {
  bool present = false;
  std::string what;    // "NVIDIA driver"
  std::string detail;  // where, or what is missing and how to get it
};

struct GpuPlaces {
  CudaSearchInput search;
  std::string plugin;  // libcox_gpu.so; "" = none
};
// Of this machine: LibTorch is the one that cox-learner beside this executable
// would load.
GpuPlaces GpuPlacesHere();

// Driver, devices, CUDA runtime, NCCL, LibTorch's CUDA half with all that it
// needs, plugin.
std::vector<GpuRow> InspectGpuFiles(const GpuPlaces& places);

}  // namespace cox

#endif  // COX_CLI_DOCTOR_GPU_H_
