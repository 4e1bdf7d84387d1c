#include "lib/comm/nccl_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "absl/strings/str_join.h"
#include "lib/comm/cuda_search.h"

namespace cox {
namespace {

struct LibraryName {
  const char* what;      // for people
  const char* variable;  // names the file
  std::vector<std::string> sonames;
  const char* remedy;
};

const LibraryName& CudaRuntime() {
  static const auto* name = new LibraryName{
      "the CUDA runtime",
      "COX_CUDART",
      {"libcudart.so.13", "libcudart.so.12"},
      "install PyTorch with CUDA or the wheel nvidia-cuda-runtime and set "
      "COX_TORCH_DIR to its site-packages, or set COX_CUDART to the file"};
  return *name;
}

const LibraryName& Nccl() {
  static const auto* name = new LibraryName{
      "NCCL",
      "COX_NCCL",
      {"libnccl.so.2"},
      "install PyTorch with CUDA or the wheel nvidia-nccl-cu13 and set "
      "COX_TORCH_DIR to its site-packages, or set COX_NCCL to the file"};
  return *name;
}

// dlerror() may have line ends.
std::string LoaderError() {
  const char* text = dlerror();
  std::string line = text == nullptr ? "unknown error" : text;
  for (char& c : line) {
    if (c == '\n') c = ' ';
  }
  return line;
}

struct Library {
  void* handle = nullptr;
  std::string path;
};

absl::StatusOr<Library> OpenGiven(const LibraryName& name,
                                  const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(name.what, ": cannot load ", path, ": ", LoaderError()));
  }
  return Library{handle, path};
}

absl::StatusOr<Library> OpenLibrary(const LibraryName& name,
                                    const std::string& given) {
  if (!given.empty()) return OpenGiven(name, given);
  const char* variable = std::getenv(name.variable);
  if (variable != nullptr && *variable != '\0') {
    return OpenGiven(name, variable);
  }
  // A second copy beside LibTorch's own would be a second set of globals.
  for (const std::string& soname : name.sonames) {
    void* handle = dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (handle != nullptr) return Library{handle, soname};
  }
  const CudaSearchInput input = CudaSearchInput::OfThisProcess();
  if (const auto path = FindCudaLibrary(CudaFolders(input), name.sonames)) {
    return OpenGiven(name, *path);
  }
  for (const std::string& soname : name.sonames) {
    void* handle = dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) return Library{handle, soname};
  }
  return absl::NotFoundError(absl::StrCat(
      name.what, ": no ", absl::StrJoin(name.sonames, " or "),
      " on this machine; searched: ", name.variable, " (not set), ",
      DescribeCudaSearch(input), ", the dynamic loader's list; ", name.remedy));
}

// Fills the tables; remembers the first symbol that is missing.
class Binder {
 public:
  explicit Binder(void* handle) : handle_(handle) {}
  template <typename Function>
  void Bind(const char* symbol, Function** slot) {
    *slot = reinterpret_cast<Function*>(dlsym(handle_, symbol));
    if (*slot == nullptr && missing_.empty()) missing_ = symbol;
  }
  absl::Status Check(const LibraryName& name, const std::string& path,
                     const char* oldest) const {
    if (missing_.empty()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(name.what, ": ", path, " has no function ", missing_,
                     "; expected ", oldest, " or later"));
  }

 private:
  void* handle_;
  std::string missing_;
};

}  // namespace

size_t BytesOf(NcclType type) {
  switch (type) {
    case NcclType::kInt8:
    case NcclType::kUint8:
      return 1;
    case NcclType::kFloat16:
    case NcclType::kBfloat16:
      return 2;
    case NcclType::kFloat32:
      return 4;
    case NcclType::kFloat64:
      return 8;
  }
  return 1;
}

absl::StatusOr<CudaApi> LoadCudaApi(const std::string& path) {
  COX_ASSIGN_OR_RETURN(const Library library, OpenLibrary(CudaRuntime(), path));
  CudaApi api = {};
  api.path = library.path;
  Binder b(library.handle);
  b.Bind("cudaGetDeviceCount", &api.get_device_count);
  b.Bind("cudaGetDevice", &api.get_device);
  b.Bind("cudaSetDevice", &api.set_device);
  b.Bind("cudaMalloc", &api.malloc);
  b.Bind("cudaFree", &api.free);
  b.Bind("cudaMallocHost", &api.malloc_host);
  b.Bind("cudaFreeHost", &api.free_host);
  b.Bind("cudaMemcpyAsync", &api.memcpy_async);
  b.Bind("cudaStreamCreateWithFlags", &api.stream_create);
  b.Bind("cudaStreamDestroy", &api.stream_destroy);
  b.Bind("cudaStreamQuery", &api.stream_query);
  b.Bind("cudaStreamSynchronize", &api.stream_synchronize);
  b.Bind("cudaStreamWaitEvent", &api.stream_wait_event);
  b.Bind("cudaEventCreateWithFlags", &api.event_create);
  b.Bind("cudaEventDestroy", &api.event_destroy);
  b.Bind("cudaEventRecord", &api.event_record);
  b.Bind("cudaEventQuery", &api.event_query);
  b.Bind("cudaDriverGetVersion", &api.driver_get_version);
  b.Bind("cudaRuntimeGetVersion", &api.runtime_get_version);
  b.Bind("cudaGetErrorString", &api.get_error_string);
  COX_RETURN_IF_ERROR(b.Check(CudaRuntime(), api.path, "CUDA 12"));
  return api;
}

absl::StatusOr<NcclApi> LoadNcclApi(const std::string& path) {
  COX_ASSIGN_OR_RETURN(const Library library, OpenLibrary(Nccl(), path));
  NcclApi api = {};
  api.path = library.path;
  Binder b(library.handle);
  b.Bind("ncclGetVersion", &api.get_version);
  b.Bind("ncclGetUniqueId", &api.get_unique_id);
  b.Bind("ncclCommInitRankConfig", &api.comm_init_rank_config);
  b.Bind("ncclCommSplit", &api.comm_split);
  b.Bind("ncclCommFinalize", &api.comm_finalize);
  b.Bind("ncclCommDestroy", &api.comm_destroy);
  b.Bind("ncclCommAbort", &api.comm_abort);
  b.Bind("ncclCommGetAsyncError", &api.comm_get_async_error);
  b.Bind("ncclAllReduce", &api.all_reduce);
  b.Bind("ncclReduceScatter", &api.reduce_scatter);
  b.Bind("ncclAllGather", &api.all_gather);
  b.Bind("ncclBroadcast", &api.broadcast);
  b.Bind("ncclGroupStart", &api.group_start);
  b.Bind("ncclGroupEnd", &api.group_end);
  b.Bind("ncclGetErrorString", &api.get_error_string);
  b.Bind("ncclGetLastError", &api.get_last_error);
  COX_RETURN_IF_ERROR(b.Check(Nccl(), api.path, "NCCL 2.18"));
  return api;
}

absl::StatusOr<int> CountCudaDevices(const CudaApi& api) {
  int count = 0;
  const CudaResult result = api.get_device_count(&count);
  if (result == CudaResult::kSuccess && count > 0) return count;
  int runtime = 0;
  api.runtime_get_version(&runtime);
  const std::string wanted =
      absl::StrCat("CUDA ", runtime / 1000, ".", runtime % 1000 / 10);
  if (result == CudaResult::kInsufficientDriver ||
      result == CudaResult::kStubLibrary) {
    int driver = 0;
    api.driver_get_version(&driver);
    const std::string found =
        driver == 0 ? "no NVIDIA driver"
                    : absl::StrCat("a driver for CUDA ", driver / 1000, ".",
                                   driver % 1000 / 10);
    return absl::NotFoundError(absl::StrCat(
        "GPU: ", found, " on this machine, but ", api.path, " is ", wanted,
        "; install an NVIDIA driver for ", wanted,
        " or later, or use roles.device: cpu and roles.collective: gloo"));
  }
  if (result == CudaResult::kSuccess || result == CudaResult::kNoDevice) {
    return absl::NotFoundError(
        "GPU: the driver shows no device to this process (see nvidia-smi and "
        "CUDA_VISIBLE_DEVICES)");
  }
  return absl::NotFoundError(absl::StrCat(
      "GPU: cudaGetDeviceCount failed with ", static_cast<int>(result), " (",
      api.get_error_string(result), ")"));
}

absl::Status CheckNccl() {
  COX_ASSIGN_OR_RETURN(const CudaApi cuda, LoadCudaApi());
  COX_RETURN_IF_ERROR(LoadNcclApi().status());
  return CountCudaDevices(cuda).status();
}

absl::Status CudaStatus(const CudaApi& api, const char* operation,
                        CudaResult result) {
  if (result == CudaResult::kSuccess) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat(operation, ": CUDA error ",
                                         static_cast<int>(result), " (",
                                         api.get_error_string(result), ")"));
}

}  // namespace cox
