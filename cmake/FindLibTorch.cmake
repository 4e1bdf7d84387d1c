# LibTorch::cpu from the unpacked PyPI wheel: find_package(Torch) would demand a
# CUDA toolkit. The folder is the cache link that tools/setup.sh maintains, or
# -DCOX_LIBTORCH=DIR (a folder with torch/ and nvidia/ side by side).
set(_cox_cache "$ENV{COX_CACHE}")
if(NOT _cox_cache)
  set(_cox_cache "$ENV{HOME}/.cache/coxswain")
endif()
set(COX_LIBTORCH "${_cox_cache}/libtorch" CACHE PATH "Unpacked torch wheel")
get_filename_component(_cox_libtorch "${COX_LIBTORCH}" REALPATH)
find_library(LIBTORCH_CPU torch_cpu
  PATHS "${_cox_libtorch}/torch/lib" NO_DEFAULT_PATH)
find_library(LIBTORCH_C10 c10
  PATHS "${_cox_libtorch}/torch/lib" NO_DEFAULT_PATH)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LIBTORCH_CPU LIBTORCH_C10
  REASON_FAILURE_MESSAGE "run tools/setup.sh, or configure with -DCOX_WITH_TORCH=OFF")
if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  add_library(LibTorch::cpu INTERFACE IMPORTED)
  # -idirafter: the wheel's bundled third-party headers must not win over
  # Debian's.
  target_compile_options(LibTorch::cpu INTERFACE
    "SHELL:-idirafter ${_cox_libtorch}/torch/include"
    "SHELL:-idirafter ${_cox_libtorch}/torch/include/torch/csrc/api/include"
    -D_GLIBCXX_USE_CXX11_ABI=1 -DUSE_C10D_GLOO)
  target_link_libraries(LibTorch::cpu INTERFACE
    "${LIBTORCH_CPU}" "${LIBTORCH_C10}")
  target_link_options(LibTorch::cpu INTERFACE
    "-Wl,-rpath,${_cox_libtorch}/torch/lib"
    "-Wl,-rpath-link,${_cox_libtorch}/nvidia/cu13/lib"
    "-Wl,--allow-shlib-undefined")
endif()
