// libcox_gpu.so: fills CoxGpuApi. Linked to LibTorch's CUDA half, so it loads
// only after it (loader.cc). Exceptions of LibTorch end here.

#include <cstdio>
#include <exception>
#include <string>

#include "ATen/cuda/CUDAGraph.h"
#include "c10/cuda/CUDAFunctions.h"
#include "c10/cuda/CUDAGuard.h"
#include "c10/cuda/CUDAStream.h"
#include "cuda_runtime_api.h"
#include "lib/gpu/api.h"
#include "lib/gpu/kernels.h"

namespace {

thread_local std::string graph_error_text;

// A recorded sequence of launches, on a stream of its own.
struct Graph {
  Graph() : stream(c10::cuda::getStreamFromPool()) {}
  c10::cuda::CUDAStream stream;
  at::cuda::CUDAGraph graph;
};

template <typename Body>
int Guarded(Body&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    graph_error_text = error.what();
    return 1;
  }
}

void* GraphNew() {
  void* graph = nullptr;
  Guarded([&graph] { graph = new Graph; });
  return graph;
}

int GraphRecord(void* graph, int (*body)(void*), void* context) {
  Graph* g = static_cast<Graph*>(graph);
  cudaDeviceSynchronize();
  const c10::cuda::CUDAStreamGuard recording(g->stream);
  const int begun = Guarded([g] { g->graph.capture_begin(); });
  if (begun != 0) return begun;
  const int called = body(context);
  if (called != 0) graph_error_text = "the recorded body failed";
  // A recording always ends, or this thread could launch nothing any more.
  const int ended = Guarded([g] { g->graph.capture_end(); });
  return called != 0 ? called : ended;
}

int GraphReplay(void* graph) {
  return Guarded([graph] { static_cast<Graph*>(graph)->graph.replay(); });
}

void GraphDelete(void* graph) { delete static_cast<Graph*>(graph); }

const char* GraphError() { return graph_error_text.c_str(); }

void* CurrentStream() {
  void* stream = nullptr;
  Guarded([&stream] { stream = c10::cuda::getCurrentCUDAStream().stream(); });
  return stream;
}

void Synchronize() { cudaDeviceSynchronize(); }

int DescribeDevice(char* text, int64_t size) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count < 1) return 0;
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) return 0;
  std::snprintf(text, static_cast<size_t>(size), "%s, %.0f GB, sm_%d%d",
                device.name, static_cast<double>(device.totalGlobalMem) * 1e-9,
                device.major, device.minor);
  return count;
}

constexpr CoxGpuApi kApi = {
    .version = COX_GPU_API_VERSION,
    .size = sizeof(CoxGpuApi),
    .sample = cox::gpu::LaunchSample,
    .rms_norm = cox::gpu::LaunchRmsNorm,
    .rotary_cache = cox::gpu::LaunchRotaryCache,
    .attend = cox::gpu::LaunchAttend,
    .adam = cox::gpu::LaunchAdam,
    .squared_norm = cox::gpu::LaunchSquaredNorm,
    .error_text = cox::gpu::ErrorText,
    .describe_device = DescribeDevice,
    .current_stream = CurrentStream,
    .synchronize = Synchronize,
    .graph_new = GraphNew,
    .graph_record = GraphRecord,
    .graph_replay = GraphReplay,
    .graph_delete = GraphDelete,
    .graph_error = GraphError,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const CoxGpuApi* cox_gpu_api(
    uint32_t version) {
  return version == COX_GPU_API_VERSION ? &kApi : nullptr;
}
