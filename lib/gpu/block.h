#ifndef COX_LIB_GPU_BLOCK_H_
#define COX_LIB_GPU_BLOCK_H_

// How the kernels' arithmetic is written once for both compilers. A function of
// kernel_math.h is a template over a Block: the threads that work on one row
// together. In a kernel that is a CUDA thread block (kernels.cu); in the tests
// it is a few threads of the host (tests/gpu/host_block.h), so what a machine
// with a GPU runs is tested on one without.
//
// A Block has
//   int rank() const, int threads() const   this thread's place, how many
//   T Sum(T value) const                    over all threads, to all of them:
//   T Max(T value) const                    double, float, int64_t
//   double SumBefore(double value) const    over the threads of lower rank
//   void Sync() const                       a barrier
// Sums are added in a fixed tree over ranks, so a result depends on the number
// of threads but not on their timing.

#include <cstdint>

#ifdef __CUDACC__
#define COX_HD __host__ __device__ inline
#else
#define COX_HD inline
#endif

namespace cox::gpu {

// The part [first, end) of n elements, in order, that belongs to a rank.
struct Part {
  int64_t first;
  int64_t end;
};
template <typename Block>
COX_HD Part PartOf(const Block& block, int64_t n) {
  const int64_t size = (n + block.threads() - 1) / block.threads();
  const int64_t first = size * block.rank();
  const int64_t end = first + size;
  return {first < n ? first : n, end < n ? end : n};
}

}  // namespace cox::gpu

#endif  // COX_LIB_GPU_BLOCK_H_
