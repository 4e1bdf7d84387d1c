#ifndef COX_LIB_COMM_NCCL_API_H_
#define COX_LIB_COMM_NCCL_API_H_

// NCCL and the CUDA runtime as tables of function pointers, filled by dlopen,
// so that one binary runs with and without them. The types below are the
// libraries' C ABI, written down here because their headers are not there at
// every build; tests/nccl/nccl_api_test.cc compares them with the real headers.
//
// Loaded once per process and never unloaded. Thread-safe.

#include <climits>
#include <cstddef>
#include <string>

#include "lib/base/status.h"

namespace cox {

// --- CUDA runtime (12 and 13) ---

using CudaStream = void*;  // cudaStream_t; nullptr = the default stream
using CudaEvent = void*;   // cudaEvent_t

enum class CudaResult : unsigned int {
  kSuccess = 0,
  kInvalidValue = 1,
  kMemoryAllocation = 2,
  kStubLibrary = 34,
  kInsufficientDriver = 35,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kNotReady = 600,
  kIllegalAddress = 700,
};
enum class CudaCopy : unsigned int {
  kHostToDevice = 1,
  kDeviceToHost = 2,
  kDeviceToDevice = 3,
};
inline constexpr unsigned int kCudaStreamNonBlocking = 1;
inline constexpr unsigned int kCudaEventDisableTiming = 2;

struct CudaApi {
  CudaResult (*get_device_count)(int* count);
  CudaResult (*get_device)(int* device);
  CudaResult (*set_device)(int device);
  CudaResult (*malloc)(void** pointer, size_t bytes);
  CudaResult (*free)(void* pointer);
  CudaResult (*malloc_host)(void** pointer, size_t bytes);
  CudaResult (*free_host)(void* pointer);
  CudaResult (*memcpy_async)(void* to, const void* from, size_t bytes,
                             CudaCopy kind, CudaStream stream);
  CudaResult (*stream_create)(CudaStream* stream, unsigned int flags);
  CudaResult (*stream_destroy)(CudaStream stream);
  CudaResult (*stream_query)(CudaStream stream);
  CudaResult (*stream_synchronize)(CudaStream stream);
  CudaResult (*stream_wait_event)(CudaStream stream, CudaEvent event,
                                  unsigned int flags);
  CudaResult (*event_create)(CudaEvent* event, unsigned int flags);
  CudaResult (*event_destroy)(CudaEvent event);
  CudaResult (*event_record)(CudaEvent event, CudaStream stream);
  CudaResult (*event_query)(CudaEvent event);
  CudaResult (*driver_get_version)(int* version);  // 13000 = CUDA 13.0
  CudaResult (*runtime_get_version)(int* version);
  const char* (*get_error_string)(CudaResult result);
  std::string path;  // of the library
};

// --- NCCL (2.18 and later) ---

struct NcclComm;  // ncclComm_t is NcclComm*

struct NcclUniqueId {
  char bytes[128];
};

enum class NcclResult : unsigned int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};
enum class NcclType : unsigned int {
  kInt8 = 0,
  kUint8 = 1,
  kFloat16 = 6,
  kFloat32 = 7,
  kFloat64 = 8,
  kBfloat16 = 9,
};
size_t BytesOf(NcclType type);
enum class NcclOp : unsigned int { kSum = 0 };
inline constexpr int kNcclSplitNoColor = -1;

// The front part of ncclConfig_t as NCCL 2.18 had it. `size` and `version` tell
// a newer library that the rest is to have its defaults.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 21800;
  int blocking = INT_MIN;
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

struct NcclApi {
  NcclResult (*get_version)(int* version);  // 22809 = 2.28.9
  NcclResult (*get_unique_id)(NcclUniqueId* id);
  NcclResult (*comm_init_rank_config)(NcclComm** comm, int ranks,
                                      NcclUniqueId id, int rank,
                                      NcclConfig* config);
  // Ranks of equal `color` form a new group, ordered by `key`.
  NcclResult (*comm_split)(NcclComm* comm, int color, int key,
                           NcclComm** result, NcclConfig* config);
  NcclResult (*comm_finalize)(NcclComm* comm);
  NcclResult (*comm_destroy)(NcclComm* comm);
  NcclResult (*comm_abort)(NcclComm* comm);
  NcclResult (*comm_get_async_error)(NcclComm* comm, NcclResult* error);
  NcclResult (*all_reduce)(const void* in, void* out, size_t count,
                           NcclType type, NcclOp op, NcclComm* comm,
                           CudaStream stream);
  // `count` elements for each rank.
  NcclResult (*reduce_scatter)(const void* in, void* out, size_t count,
                               NcclType type, NcclOp op, NcclComm* comm,
                               CudaStream stream);
  // `count` elements of each rank.
  NcclResult (*all_gather)(const void* in, void* out, size_t count,
                           NcclType type, NcclComm* comm, CudaStream stream);
  NcclResult (*broadcast)(const void* in, void* out, size_t count,
                          NcclType type, int root, NcclComm* comm,
                          CudaStream stream);
  NcclResult (*group_start)();
  NcclResult (*group_end)();
  const char* (*get_error_string)(NcclResult result);
  const char* (*get_last_error)(NcclComm* comm);
  std::string path;  // of the library
};

// Where: `path`, if given; else $COX_CUDART or $COX_NCCL; else what this
// process has loaded already; else the folders of lib/comm/cuda_search.h; else
// the dynamic loader's own list. A path that was given is never replaced by
// another. NOT_FOUND, in one line: what is missing, where it was looked for,
// how to get it. FAILED_PRECONDITION: the library is too old.
absl::StatusOr<CudaApi> LoadCudaApi(const std::string& path = "");
absl::StatusOr<NcclApi> LoadNcclApi(const std::string& path = "");

// Number of GPUs, at least 1. NOT_FOUND, in one line, when there is no driver,
// one that is too old, or no GPU.
absl::StatusOr<int> CountCudaDevices(const CudaApi& api);

// Whether this process could take part in a group: NOT_FOUND, in one line, when
// a library, the driver or a GPU is missing.
absl::Status CheckNccl();

// OK, or ABORTED with operation, number and text.
absl::Status CudaStatus(const CudaApi& api, const char* operation,
                        CudaResult result);

}  // namespace cox

#endif  // COX_LIB_COMM_NCCL_API_H_
