// Fused kernels: launches of what kernel_rows.h does with a row.

#include <cuda_runtime.h>

#include "lib/gpu/kernel_rows.h"
#include "lib/gpu/kernels.h"

namespace cox::gpu {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;

// The Block of lib/gpu/block.h: a thread block. Values meet in shared memory;
// each thread adds them in rank order within its warp's share and then over
// warps, so all threads get the same bits.
class DeviceBlock {
 public:
  __device__ explicit DeviceBlock(double* shared) : shared_(shared) {}
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ void Sync() const { __syncthreads(); }
  template <typename T>
  __device__ T Sum(T value) const {
    return static_cast<T>(Fold(static_cast<double>(value), Add()));
  }
  template <typename T>
  __device__ T Max(T value) const {
    return static_cast<T>(Fold(static_cast<double>(value), Larger()));
  }
  __device__ double SumBefore(double value) const {
    double inclusive = value;
    const int lane = rank() % kWarp;
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(0xffffffffu, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    __syncthreads();
    if (lane == kWarp - 1) shared_[rank() / kWarp] = inclusive;
    __syncthreads();
    double before = inclusive - value;
    for (int w = 0; w < rank() / kWarp; ++w) before += shared_[w];
    __syncthreads();
    return before;
  }

 private:
  struct Add {
    __device__ double operator()(double a, double b) const { return a + b; }
  };
  struct Larger {
    __device__ double operator()(double a, double b) const {
      return a > b ? a : b;
    }
  };
  // REQUIRES: a multiple of kWarp threads. Exact for float and for integers
  // below 2^53.
  template <typename Op>
  __device__ double Fold(double value, Op op) const {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      value = op(value, __shfl_xor_sync(0xffffffffu, value, step));
    }
    __syncthreads();
    if (rank() % kWarp == 0) shared_[rank() / kWarp] = value;
    __syncthreads();
    double out = shared_[0];
    for (int w = 1; w < threads() / kWarp; ++w) out = op(out, shared_[w]);
    __syncthreads();
    return out;
  }

  double* shared_;  // [kMaxThreads / kWarp]
};

__global__ void SampleKernel(CoxGpuSample batch) {
  __shared__ double shared[kMaxThreads / kWarp];
  DrawRow(DeviceBlock(shared), batch, int64_t{blockIdx.x});
}

template <typename T>
__global__ void RmsNormKernel(const T* x, const float* weight, int64_t width,
                              float eps, T* out) {
  __shared__ double shared[kMaxThreads / kWarp];
  const int64_t row = blockIdx.x;
  RmsNormRow(DeviceBlock(shared), x + row * width, weight, width, eps,
             out + row * width);
}

template <typename T>
__global__ void RotaryCacheKernel(CoxGpuRotaryCache args) {
  __shared__ double shared[kMaxThreads / kWarp];
  RotaryCacheRow<T>(DeviceBlock(shared), args, int64_t{blockIdx.x});
}

template <typename T>
__global__ void AttendKernel(CoxGpuAttend args) {
  __shared__ double shared[kMaxThreads / kWarp];
  extern __shared__ float scores[];
  AttendRow<T>(DeviceBlock(shared), args, int64_t{blockIdx.x},
               int64_t{blockIdx.y}, scores);
}

__global__ void AdamKernel(CoxGpuAdam args) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       i < args.count; i += stride) {
    AdamAt(args, i);
  }
}

__global__ void SquaresKernel(const float* values, int64_t count,
                              double* sums) {
  __shared__ double shared[kMaxThreads / kWarp];
  const double sum = SquaresOf(DeviceBlock(shared), values, count,
                               int64_t{blockIdx.x}, int64_t{gridDim.x});
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// In block order, so that the sum does not depend on timing.
__global__ void FoldKernel(const double* sums, int64_t count, double* out) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += sums[i];
  *out = total;
}

cudaStream_t Stream(void* stream) { return static_cast<cudaStream_t>(stream); }
unsigned Blocks(int64_t n) { return static_cast<unsigned>(n); }

constexpr int64_t kSquareBlocks = 512;
// Beyond 48 KB a kernel must ask for shared memory; 200 KB fit an H100.
constexpr int64_t kPlainSharedBytes = 48 << 10;
constexpr int64_t kMostSharedBytes = 200 << 10;

template <typename T>
int LaunchAttend(const CoxGpuAttend& args, cudaStream_t stream) {
  const int64_t bytes = args.capacity * static_cast<int64_t>(sizeof(float));
  if (bytes > kMostSharedBytes) return cudaErrorInvalidValue;
  if (bytes > kPlainSharedBytes) {
    const cudaError_t allowed = cudaFuncSetAttribute(
        AttendKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(bytes));
    if (allowed != cudaSuccess) return allowed;
  }
  const dim3 grid(Blocks(args.rows), Blocks(args.heads));
  AttendKernel<T><<<grid, 128, static_cast<size_t>(bytes), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

int LaunchSample(const CoxGpuSample* batch, void* stream) {
  SampleKernel<<<Blocks(batch->rows), kMaxThreads, 0, Stream(stream)>>>(*batch);
  return cudaGetLastError();
}

int LaunchRmsNorm(int type, const void* x, const float* weight, int64_t rows,
                  int64_t width, float eps, void* out, void* stream) {
  if (type == COX_GPU_BF16) {
    RmsNormKernel<Bf16><<<Blocks(rows), 256, 0, Stream(stream)>>>(
        static_cast<const Bf16*>(x), weight, width, eps,
        static_cast<Bf16*>(out));
  } else {
    RmsNormKernel<float><<<Blocks(rows), 256, 0, Stream(stream)>>>(
        static_cast<const float*>(x), weight, width, eps,
        static_cast<float*>(out));
  }
  return cudaGetLastError();
}

int LaunchRotaryCache(const CoxGpuRotaryCache* args, void* stream) {
  if (args->type == COX_GPU_BF16) {
    RotaryCacheKernel<Bf16>
        <<<Blocks(args->rows), 256, 0, Stream(stream)>>>(*args);
  } else {
    RotaryCacheKernel<float>
        <<<Blocks(args->rows), 256, 0, Stream(stream)>>>(*args);
  }
  return cudaGetLastError();
}

int LaunchAttend(const CoxGpuAttend* args, void* stream) {
  return args->type == COX_GPU_BF16
             ? LaunchAttend<Bf16>(*args, Stream(stream))
             : LaunchAttend<float>(*args, Stream(stream));
}

int LaunchAdam(const CoxGpuAdam* args, void* stream) {
  const int64_t blocks = (args->count + 255) / 256;
  AdamKernel<<<Blocks(blocks < 4096 ? blocks : 4096), 256, 0, Stream(stream)>>>(
      *args);
  return cudaGetLastError();
}

int LaunchSquaredNorm(const float* values, int64_t count, double* scratch,
                      double* sum, void* stream) {
  SquaresKernel<<<Blocks(kSquareBlocks), 256, 0, Stream(stream)>>>(
      values, count, scratch);
  FoldKernel<<<1, 1, 0, Stream(stream)>>>(scratch, kSquareBlocks, sum);
  return cudaGetLastError();
}

const char* ErrorText(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace cox::gpu
