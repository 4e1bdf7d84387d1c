#ifndef COX_TESTS_GPU_HOST_GPU_H_
#define COX_TESTS_GPU_HOST_GPU_H_

// A stand-in for the plugin whose device memory is the host's: its kernels are
// those of lib/gpu/kernel_rows.h, run by one thread. A graph keeps what it was
// asked to record and, like a real one, runs it only when replayed.

#include "lib/gpu/api.h"

namespace cox {

struct HostGpuCounts {
  int samples = 0;
  int rotary_caches = 0;
  int rotations = 0;  // of these, with angles
  int attends = 0;
  int adams = 0;
  int bf16_copies = 0;  // of these, with a copy
  int records = 0;
  int replays = 0;
  int graphs = 0;  // alive
};

// For EngineOptions::kernels.
const CoxGpuApi* HostGpu();
// Since the process began; tests take differences.
HostGpuCounts& HostGpuCalls();

}  // namespace cox

#endif  // COX_TESTS_GPU_HOST_GPU_H_
