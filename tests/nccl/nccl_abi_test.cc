// Our declarations against the real headers, where a build has them.

#include "gtest/gtest.h"
#include "lib/comm/nccl_api.h"

#if __has_include(<cuda_runtime_api.h>) && __has_include(<crt/host_defines.h>)
#define COX_HAVE_CUDART_HEADER 1
#include <cuda_runtime_api.h>
#endif
#if defined(COX_HAVE_CUDART_HEADER) && __has_include(<nccl.h>)
#define COX_HAVE_NCCL_HEADER 1
#include <nccl.h>
#endif

#include <cstddef>
#include <type_traits>

namespace cox {
namespace {

// Arguments and result travel alike: the same sizes, pointers for pointers.
template <typename Ours, typename Theirs>
constexpr bool kSameWord = sizeof(Ours) == sizeof(Theirs) &&
                           std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>;
template <typename Ours, typename Theirs>
struct SameCall : std::false_type {};
template <typename R1, typename... A1, typename R2, typename... A2>
requires(sizeof...(A1) ==
         sizeof...(A2)) struct SameCall<R1 (*)(A1...), R2 (*)(A2...)>
    : std::bool_constant<kSameWord<R1, R2> && (kSameWord<A1, A2> && ...)> {
};

#define COX_SAME_CALL(table, member, function) \
  static_assert(SameCall<decltype(table::member), decltype(&function)>::value)

#ifdef COX_HAVE_CUDART_HEADER
COX_SAME_CALL(CudaApi, get_device_count, ::cudaGetDeviceCount);
COX_SAME_CALL(CudaApi, get_device, ::cudaGetDevice);
COX_SAME_CALL(CudaApi, set_device, ::cudaSetDevice);
COX_SAME_CALL(CudaApi, free, ::cudaFree);
COX_SAME_CALL(CudaApi, free_host, ::cudaFreeHost);
COX_SAME_CALL(CudaApi, memcpy_async, ::cudaMemcpyAsync);
COX_SAME_CALL(CudaApi, stream_create, ::cudaStreamCreateWithFlags);
COX_SAME_CALL(CudaApi, stream_destroy, ::cudaStreamDestroy);
COX_SAME_CALL(CudaApi, stream_query, ::cudaStreamQuery);
COX_SAME_CALL(CudaApi, stream_synchronize, ::cudaStreamSynchronize);
COX_SAME_CALL(CudaApi, event_destroy, ::cudaEventDestroy);
COX_SAME_CALL(CudaApi, event_query, ::cudaEventQuery);
COX_SAME_CALL(CudaApi, driver_get_version, ::cudaDriverGetVersion);
COX_SAME_CALL(CudaApi, runtime_get_version, ::cudaRuntimeGetVersion);
COX_SAME_CALL(CudaApi, get_error_string, ::cudaGetErrorString);
// Overloaded in C++: the cast picks the C function.
#define COX_SAME_OVERLOAD(member, type, function)   \
  static_assert(SameCall<decltype(CudaApi::member), \
                         decltype(static_cast<type>(&function))>::value)
using Allocate = cudaError_t (*)(void**, size_t);
using MakeEvent = cudaError_t (*)(cudaEvent_t*, unsigned int);
using Record = cudaError_t (*)(cudaEvent_t, cudaStream_t);
using AwaitEvent = cudaError_t (*)(cudaStream_t, cudaEvent_t, unsigned int);
COX_SAME_OVERLOAD(malloc, Allocate, ::cudaMalloc);
COX_SAME_OVERLOAD(malloc_host, Allocate, ::cudaMallocHost);
COX_SAME_OVERLOAD(event_create, MakeEvent, ::cudaEventCreateWithFlags);
COX_SAME_OVERLOAD(event_record, Record, ::cudaEventRecord);
COX_SAME_OVERLOAD(stream_wait_event, AwaitEvent, ::cudaStreamWaitEvent);
static_assert(sizeof(CudaResult) == sizeof(cudaError_t));
static_assert(sizeof(CudaStream) == sizeof(cudaStream_t));
static_assert(int(CudaResult::kInvalidValue) == cudaErrorInvalidValue);
static_assert(int(CudaResult::kMemoryAllocation) == cudaErrorMemoryAllocation);
static_assert(int(CudaResult::kStubLibrary) == cudaErrorStubLibrary);
static_assert(int(CudaResult::kInsufficientDriver) ==
              cudaErrorInsufficientDriver);
static_assert(int(CudaResult::kNoDevice) == cudaErrorNoDevice);
static_assert(int(CudaResult::kInvalidDevice) == cudaErrorInvalidDevice);
static_assert(int(CudaResult::kNotReady) == cudaErrorNotReady);
static_assert(int(CudaResult::kIllegalAddress) == cudaErrorIllegalAddress);
static_assert(int(CudaCopy::kHostToDevice) == cudaMemcpyHostToDevice);
static_assert(int(CudaCopy::kDeviceToHost) == cudaMemcpyDeviceToHost);
static_assert(int(CudaCopy::kDeviceToDevice) == cudaMemcpyDeviceToDevice);
static_assert(kCudaStreamNonBlocking == cudaStreamNonBlocking);
static_assert(kCudaEventDisableTiming == cudaEventDisableTiming);
#endif

#ifdef COX_HAVE_NCCL_HEADER
COX_SAME_CALL(NcclApi, get_version, ::ncclGetVersion);
COX_SAME_CALL(NcclApi, get_unique_id, ::ncclGetUniqueId);
COX_SAME_CALL(NcclApi, comm_init_rank_config, ::ncclCommInitRankConfig);
COX_SAME_CALL(NcclApi, comm_split, ::ncclCommSplit);
COX_SAME_CALL(NcclApi, comm_finalize, ::ncclCommFinalize);
COX_SAME_CALL(NcclApi, comm_destroy, ::ncclCommDestroy);
COX_SAME_CALL(NcclApi, comm_abort, ::ncclCommAbort);
COX_SAME_CALL(NcclApi, comm_get_async_error, ::ncclCommGetAsyncError);
COX_SAME_CALL(NcclApi, all_reduce, ::ncclAllReduce);
COX_SAME_CALL(NcclApi, reduce_scatter, ::ncclReduceScatter);
COX_SAME_CALL(NcclApi, all_gather, ::ncclAllGather);
COX_SAME_CALL(NcclApi, broadcast, ::ncclBroadcast);
COX_SAME_CALL(NcclApi, group_start, ::ncclGroupStart);
COX_SAME_CALL(NcclApi, group_end, ::ncclGroupEnd);
COX_SAME_CALL(NcclApi, get_error_string, ::ncclGetErrorString);
COX_SAME_CALL(NcclApi, get_last_error, ::ncclGetLastError);
static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));
static_assert(std::is_trivially_copyable_v<NcclUniqueId>);
static_assert(sizeof(NcclResult) == sizeof(ncclResult_t));
static_assert(int(NcclResult::kUnhandledCudaError) == ncclUnhandledCudaError);
static_assert(int(NcclResult::kSystemError) == ncclSystemError);
static_assert(int(NcclResult::kInternalError) == ncclInternalError);
static_assert(int(NcclResult::kInvalidArgument) == ncclInvalidArgument);
static_assert(int(NcclResult::kInvalidUsage) == ncclInvalidUsage);
static_assert(int(NcclResult::kRemoteError) == ncclRemoteError);
static_assert(int(NcclResult::kInProgress) == ncclInProgress);
static_assert(int(NcclType::kInt8) == ncclInt8);
static_assert(int(NcclType::kUint8) == ncclUint8);
static_assert(int(NcclType::kFloat16) == ncclFloat16);
static_assert(int(NcclType::kFloat32) == ncclFloat32);
static_assert(int(NcclType::kFloat64) == ncclFloat64);
static_assert(int(NcclType::kBfloat16) == ncclBfloat16);
static_assert(int(NcclOp::kSum) == ncclSum);
static_assert(kNcclSplitNoColor == NCCL_SPLIT_NOCOLOR);
// Ours is the front of theirs.
static_assert(sizeof(NcclConfig) <= sizeof(ncclConfig_t));
static_assert(offsetof(NcclConfig, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(NcclConfig, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(NcclConfig, blocking) ==
              offsetof(ncclConfig_t, blocking));
static_assert(offsetof(NcclConfig, max_ctas) ==
              offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(NcclConfig, net_name) ==
              offsetof(ncclConfig_t, netName));
static_assert(offsetof(NcclConfig, split_share) ==
              offsetof(ncclConfig_t, splitShare));
#endif

TEST(NcclAbiTest, CudaRuntimeDeclarationsMatchItsHeader) {
#ifndef COX_HAVE_CUDART_HEADER
  GTEST_SKIP() << "CUDA headers are not there (tools/setup.sh --gpu)";
#endif
}

TEST(NcclAbiTest, NcclDeclarationsMatchItsHeader) {
#ifdef COX_HAVE_NCCL_HEADER
  const NcclConfig ours;
  const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
  EXPECT_EQ(ours.magic, theirs.magic);
  EXPECT_EQ(ours.split_share, theirs.splitShare);
#else
  GTEST_SKIP() << "nccl.h is not there (tools/setup.sh --gpu)";
#endif
}

}  // namespace
}  // namespace cox
