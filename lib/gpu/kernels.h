#ifndef COX_LIB_GPU_KERNELS_H_
#define COX_LIB_GPU_KERNELS_H_

// Launches; the functions of CoxGpuApi (lib/gpu/api.h) of the same meaning.

#include <cstdint>

#include "lib/gpu/api.h"

namespace cox::gpu {

int LaunchSample(const CoxGpuSample* batch, void* stream);
int LaunchRmsNorm(int type, const void* x, const float* weight, int64_t rows,
                  int64_t width, float eps, void* out, void* stream);
int LaunchRotaryCache(const CoxGpuRotaryCache* args, void* stream);
int LaunchAttend(const CoxGpuAttend* args, void* stream);
int LaunchAdam(const CoxGpuAdam* args, void* stream);
int LaunchSquaredNorm(const float* values, int64_t count, double* scratch,
                      double* sum, void* stream);
const char* ErrorText(int error);

}  // namespace cox::gpu

#endif  // COX_LIB_GPU_KERNELS_H_
