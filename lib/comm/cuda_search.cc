#include "lib/comm/cuda_search.h"

#include <glob.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace cox {
namespace {

struct Source {
  const char* origin;  // also the environment variable, unless `patterns` begin
                       // with a slash
  std::vector<std::string> patterns;  // below the variable's folder
};

// The variable names a folder that holds torch/ and nvidia/ side by side (a
// site-packages, or the unpacked wheels), the torch/ in it, or a virtual
// environment around it.
const std::vector<std::string>& PythonPatterns() {
  static const auto* patterns = new std::vector<std::string>{
      "/torch/lib",
      "/lib",
      "/nvidia/*/lib",
      "/../nvidia/*/lib",
      "/lib/python3*/site-packages/torch/lib",
      "/lib/python3*/site-packages/nvidia/*/lib",
      "/lib64/python3*/site-packages/torch/lib",
      "/lib64/python3*/site-packages/nvidia/*/lib"};
  return *patterns;
}

const std::vector<Source>& Sources() {
  static const auto* sources = new std::vector<Source>{
      {"COX_TORCH_DIR", PythonPatterns()},
      {"LD_LIBRARY_PATH", {""}},
      {"LibTorch of this process", {"", "/../../nvidia/*/lib"}},
      {"VIRTUAL_ENV", PythonPatterns()},
      {"CONDA_PREFIX", PythonPatterns()},
      {"CUDA_HOME", {"/lib64", "/lib"}},
      {"system",
       {"/usr/local/cuda/lib64", "/usr/local/cuda/targets/*/lib",
        "/usr/lib/*-linux-gnu", "/usr/lib/*-linux-gnu/nvidia*",
        "/lib/*-linux-gnu", "/usr/lib64", "/lib64", "/usr/local/lib",
        "/usr/local/nvidia/lib64"}}};
  return *sources;
}

std::vector<std::string> Bases(const CudaSearchInput& input,
                               const Source& source) {
  const std::string_view origin = source.origin;
  if (origin == "system") return {input.root};
  const std::string value = origin == "LibTorch of this process"
                                ? input.loaded_torch
                                : input.env(source.origin);
  if (value.empty()) return {};
  if (origin != "LD_LIBRARY_PATH") return {value};
  std::vector<std::string> bases;
  for (const auto part : absl::StrSplit(value, ':', absl::SkipEmpty())) {
    bases.emplace_back(part);
  }
  return bases;
}

std::vector<std::string> Expand(const std::string& pattern) {
  std::vector<std::string> paths;
  glob_t found = {};
  if (glob(pattern.c_str(), GLOB_ONLYDIR, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; ++i) {
      paths.emplace_back(found.gl_pathv[i]);
    }
  }
  globfree(&found);
  return paths;
}

// "" when `path` is no folder.
std::string RealFolder(const std::string& path) {
  struct stat info = {};
  char* real = realpath(path.c_str(), nullptr);
  const std::string result = real == nullptr ? "" : real;
  std::free(real);
  const bool folder = !result.empty() && stat(result.c_str(), &info) == 0 &&
                      S_ISDIR(info.st_mode);
  return folder ? result : "";
}

int NoteTorch(dl_phdr_info* info, size_t, void* out) {
  const std::string path = info->dlpi_name == nullptr ? "" : info->dlpi_name;
  const size_t at = path.rfind("/libtorch_cpu.so");
  if (at == std::string::npos) return 0;
  *static_cast<std::string*>(out) = path.substr(0, at);
  return 1;
}

}  // namespace

CudaSearchInput CudaSearchInput::OfThisProcess() {
  CudaSearchInput input;
  input.env = [](const std::string& name) -> std::string {
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? "" : value;
  };
  dl_iterate_phdr(NoteTorch, &input.loaded_torch);
  return input;
}

std::vector<CudaFolder> CudaFolders(const CudaSearchInput& input) {
  std::vector<CudaFolder> folders;
  for (const Source& source : Sources()) {
    for (const std::string& base : Bases(input, source)) {
      for (const std::string& pattern : source.patterns) {
        for (const std::string& path : Expand(absl::StrCat(base, pattern))) {
          const std::string real = RealFolder(path);
          bool known = real.empty();
          for (const CudaFolder& folder : folders) known |= folder.path == real;
          if (!known) folders.push_back({real, source.origin});
        }
      }
    }
  }
  return folders;
}

std::optional<std::string> FindCudaLibrary(
    const std::vector<CudaFolder>& folders,
    const std::vector<std::string>& names) {
  for (const CudaFolder& folder : folders) {
    for (const std::string& name : names) {
      std::string path = absl::StrCat(folder.path, "/", name);
      if (access(path.c_str(), R_OK) == 0) return path;
    }
  }
  return std::nullopt;
}

std::string DescribeCudaSearch(const CudaSearchInput& input) {
  const std::vector<CudaFolder> folders = CudaFolders(input);
  std::vector<std::string> parts;
  for (const Source& source : Sources()) {
    int count = 0;
    for (const CudaFolder& folder : folders)
      count += folder.origin == source.origin;
    const bool set = !Bases(input, source).empty();
    parts.push_back(absl::StrCat(
        source.origin, " (",
        !set ? "not set"
             : absl::StrCat(count, count == 1 ? " folder" : " folders"),
        ")"));
  }
  return absl::StrJoin(parts, ", ");
}

}  // namespace cox
