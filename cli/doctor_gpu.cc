#include "cli/doctor_gpu.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/comm/elf_needs.h"
#include "lib/gpu/loader.h"

namespace cox {
namespace {

constexpr char kRemedy[] =
    "install PyTorch 2.11 with CUDA, or its nvidia-* wheels, and set "
    "COX_TORCH_DIR to their site-packages";

std::string FirstLine(const std::string& path) {
  const std::string text = Fs::Real().ReadAll(path).value_or("");
  return text.substr(0, text.find('\n'));
}

GpuRow Driver(const GpuPlaces& places, const std::vector<CudaFolder>& folders) {
  // Of a container there may be the library only, of a bare kernel the rest.
  const std::string version =
      FirstLine(places.search.root + "/proc/driver/nvidia/version");
  const auto library = FindCudaLibrary(folders, {"libcuda.so.1"});
  if (library) {
    return {true, "NVIDIA driver",
            absl::StrCat(*library, version.empty() ? "" : ", ", version)};
  }
  return {false, "NVIDIA driver",
          version.empty() ? "none: neither /proc/driver/nvidia nor libcuda.so.1"
                          : absl::StrCat(version,
                                         ", but no libcuda.so.1: the container "
                                         "lacks the driver's libraries")};
}

GpuRow Devices(const GpuPlaces& places) {
  int count = 0;
  const auto names = Fs::Real().List(places.search.root + "/dev");
  for (const std::string& name : names.value_or(std::vector<std::string>())) {
    const bool number =
        name.size() > 6 && name.rfind("nvidia", 0) == 0 &&
        std::all_of(name.begin() + 6, name.end(),
                    [](unsigned char c) { return std::isdigit(c) != 0; });
    count += number ? 1 : 0;
  }
  return {count > 0, "GPUs",
          count > 0 ? absl::StrCat(count, " in /dev")
                    : "none in /dev: device cpu only"};
}

GpuRow Library(const std::vector<CudaFolder>& folders, const char* what,
               const std::vector<std::string>& names, const char* remedy) {
  if (const auto path = FindCudaLibrary(folders, names)) {
    return {true, what, *path};
  }
  return {false, what,
          absl::StrCat("no ", absl::StrJoin(names, " or "), "; ", remedy)};
}

GpuRow TorchCuda(const std::vector<CudaFolder>& folders) {
  const std::string what = "LibTorch for CUDA";
  const auto path = FindCudaLibrary(folders, {"libtorch_cuda.so"});
  if (!path) {
    return {false, what, absl::StrCat("no libtorch_cuda.so; ", kRemedy)};
  }
  std::vector<std::string> places;
  for (const CudaFolder& folder : folders) places.push_back(folder.path);
  const absl::StatusOr<ElfWalk> walk = WalkElfNeeds(*path, places);
  if (!walk.ok()) return {false, what, std::string(walk.status().message())};
  if (walk->missing.empty()) {
    return {true, what,
            absl::StrCat(*path, ", with all ", walk->found.size(),
                         " libraries that it needs")};
  }
  std::vector<std::string> names;
  for (const MissingLibrary& one : walk->missing) {
    names.push_back(absl::StrCat(one.name, " (for ", one.needed_by, ")"));
  }
  return {false, what,
          absl::StrCat(*path, " lacks ", absl::StrJoin(names, ", "), "; ",
                       kRemedy)};
}

}  // namespace

GpuPlaces GpuPlacesHere() {
  GpuPlaces places;
  places.search = CudaSearchInput::OfThisProcess();
  const absl::StatusOr<ElfDynamic> learner =
      ReadElfDynamic(JoinPath(ExecutableDir(), "cox-learner"));
  if (learner.ok()) {
    for (const std::string& folder : learner->runpath) {
      if (Fs::Real().Exists(JoinPath(folder, "libtorch_cpu.so"))) {
        places.search.loaded_torch = folder;
      }
    }
  }
  places.plugin = GpuPluginPath();
  return places;
}

std::vector<GpuRow> InspectGpuFiles(const GpuPlaces& places) {
  const std::vector<CudaFolder> folders = CudaFolders(places.search);
  return {
      Driver(places, folders),
      Devices(places),
      Library(folders, "CUDA runtime", {"libcudart.so.13", "libcudart.so.12"},
              "wheel nvidia-cuda-runtime, or set COX_CUDART to the file"),
      Library(folders, "NCCL", {"libnccl.so.2"},
              "wheel nvidia-nccl-cu13, or set COX_NCCL to the file"),
      TorchCuda(folders),
      places.plugin.empty()
          ? GpuRow{false, "GPU plugin",
                   "no libcox_gpu.so beside this program or in ../lib; run "
                   "tools/setup.sh --gpu and build"}
          : GpuRow{true, "GPU plugin", places.plugin},
  };
}

}  // namespace cox
