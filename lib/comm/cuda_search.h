#ifndef COX_LIB_COMM_CUDA_SEARCH_H_
#define COX_LIB_COMM_CUDA_SEARCH_H_

// Where CUDA libraries may lie: a PyTorch folder, its `nvidia-*` wheels, a CUDA
// toolkit, the system (docs/gpu.md "Where libraries are searched"). Nothing is
// loaded here.

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace cox {

struct CudaSearchInput {
  // "" when the variable is not set.
  std::function<std::string(const std::string& name)> env;
  // Folder of the LibTorch that this process has loaded; "" = none.
  std::string loaded_torch;
  // Prefix of all system folders, for tests.
  std::string root;

  static CudaSearchInput OfThisProcess();
};

struct CudaFolder {
  std::string path;    // exists
  std::string origin;  // "COX_TORCH_DIR", "VIRTUAL_ENV", "system" ...
};

// Every existing folder that may hold CUDA libraries, in order of preference,
// each once.
std::vector<CudaFolder> CudaFolders(const CudaSearchInput& input);

// The first of `names` in the first folder that has one.
std::optional<std::string> FindCudaLibrary(
    const std::vector<CudaFolder>& folders,
    const std::vector<std::string>& names);

// What was looked at, for the end of an error message: "COX_TORCH_DIR (not
// set), LD_LIBRARY_PATH (2 folders), ...".
std::string DescribeCudaSearch(const CudaSearchInput& input);

}  // namespace cox

#endif  // COX_LIB_COMM_CUDA_SEARCH_H_
