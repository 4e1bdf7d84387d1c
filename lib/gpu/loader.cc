#include "lib/gpu/loader.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/comm/cuda_search.h"
#include "lib/comm/elf_needs.h"

namespace cox {
namespace {

constexpr char kRemedy[] =
    "install PyTorch 2.11 with CUDA, or its nvidia-* wheels, and set "
    "COX_TORCH_DIR to the site-packages folder (docs/gpu.md)";

absl::Status Missing(const std::string& line) {
  return absl::NotFoundError("device cuda: " + line);
}

std::string LoaderError() {
  const char* text = dlerror();
  std::string line = text == nullptr ? "unknown error" : text;
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

struct Driver {
  int devices = 0;
  std::string problem;  // "" = at least one device
};

// Through the driver's own C API, which needs no other library.
Driver FindDriver() {
  Driver driver;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    driver.problem =
        "no NVIDIA driver: libcuda.so.1 is not on this machine; install the "
        "driver, or use roles.device: cpu";
    return driver;
  }
  using Init = int (*)(unsigned int);
  using Count = int (*)(int*);
  const auto init = reinterpret_cast<Init>(dlsym(library, "cuInit"));
  const auto count =
      reinterpret_cast<Count>(dlsym(library, "cuDeviceGetCount"));
  if (init == nullptr || count == nullptr) {
    driver.problem = "libcuda.so.1 is no NVIDIA driver: cuInit is not in it";
    return driver;
  }
  const int started = init(0);
  if (started != 0 || count(&driver.devices) != 0 || driver.devices < 1) {
    driver.devices = 0;
    driver.problem = absl::StrCat(
        "the NVIDIA driver finds no GPU (cuInit gave ", started,
        "); check nvidia-smi, and that the container was given one");
  }
  return driver;
}

// LibTorch's CUDA half and all that it needs.
struct TorchCuda {
  std::string path;
  std::vector<std::string> needed;  // paths
  std::string problem;
};

TorchCuda FindTorchCuda() {
  TorchCuda out;
  const CudaSearchInput input = CudaSearchInput::OfThisProcess();
  std::vector<std::string> folders;
  for (const CudaFolder& folder : CudaFolders(input)) {
    folders.push_back(folder.path);
  }
  // Beside the libtorch_cpu.so in use: both must be of one build.
  if (!input.loaded_torch.empty()) {
    out.path = JoinPath(input.loaded_torch, "libtorch_cuda.so");
  }
  if (out.path.empty() || !Fs::Real().Exists(out.path)) {
    out.problem = absl::StrCat(
        "libtorch_cuda.so is not beside LibTorch (",
        input.loaded_torch.empty() ? "none is loaded" : input.loaded_torch,
        "); run tools/setup.sh");
    return out;
  }
  const absl::StatusOr<ElfWalk> walk = WalkElfNeeds(out.path, folders);
  if (!walk.ok()) {
    out.problem = std::string(walk.status().message());
    return out;
  }
  out.needed = walk->found;
  if (!walk->missing.empty()) {
    std::vector<std::string> names;
    for (const MissingLibrary& library : walk->missing) {
      names.push_back(library.name);
    }
    out.problem = absl::StrCat("libtorch_cuda.so needs ",
                               absl::StrJoin(names, ", "), ", not found in ",
                               DescribeCudaSearch(input), "; ", kRemedy);
  }
  return out;
}

// Opens each library as soon as those that it needs are open. "" or the last
// error.
std::string OpenInOrder(std::vector<std::string> paths) {
  std::string error;
  while (!paths.empty()) {
    std::vector<std::string> later;
    for (const std::string& path : paths) {
      if (dlopen(path.c_str(), RTLD_LAZY | RTLD_GLOBAL) == nullptr) {
        error = LoaderError();
        later.push_back(path);
      }
    }
    if (later.size() == paths.size()) return error;
    paths = std::move(later);
  }
  return "";
}

absl::StatusOr<const CoxGpuApi*> Load() {
  const Driver driver = FindDriver();
  if (!driver.problem.empty()) return Missing(driver.problem);
  const std::string plugin = GpuPluginPath();
  if (plugin.empty()) {
    return Missing(
        "libcox_gpu.so is neither beside this program nor in ../lib; build it "
        "after tools/setup.sh --gpu, or set COX_GPU_PLUGIN to the file");
  }
  TorchCuda torch = FindTorchCuda();
  if (!torch.problem.empty()) return Missing(torch.problem);
  torch.needed.push_back(torch.path);
  if (const std::string error = OpenInOrder(torch.needed); !error.empty()) {
    return Missing(error);
  }
  return OpenGpuPlugin(plugin);
}

}  // namespace

std::string GpuPluginPath() {
  const char* given = std::getenv("COX_GPU_PLUGIN");
  if (given != nullptr && *given != '\0') return given;
  for (const std::string folder : {"", "../lib/"}) {
    const std::string path =
        JoinPath(ExecutableDir(), folder + "libcox_gpu.so");
    if (Fs::Real().Exists(path)) return path;
  }
  return "";
}

absl::StatusOr<const CoxGpuApi*> OpenGpuPlugin(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return Missing(LoaderError());
  using Find = const CoxGpuApi* (*)(uint32_t);
  const auto find = reinterpret_cast<Find>(dlsym(library, "cox_gpu_api"));
  if (find == nullptr) {
    return Missing(absl::StrCat(path,
                                " is no plugin of Coxswain: cox_gpu_api "
                                "is not in it"));
  }
  const CoxGpuApi* api = find(COX_GPU_API_VERSION);
  if (api == nullptr || api->size != sizeof(CoxGpuApi)) {
    return Missing(absl::StrCat(path,
                                " is of another version than this "
                                "program (expected ",
                                COX_GPU_API_VERSION, "); build both together"));
  }
  char text[256] = "";
  if (api->describe_device(text, sizeof(text)) < 1) {
    return Missing("LibTorch finds no GPU");
  }
  return api;
}

absl::StatusOr<const CoxGpuApi*> LoadGpu() {
  static const auto* loaded = new absl::StatusOr<const CoxGpuApi*>(Load());
  return *loaded;
}

}  // namespace cox
