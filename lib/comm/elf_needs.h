#ifndef COX_LIB_COMM_ELF_NEEDS_H_
#define COX_LIB_COMM_ELF_NEEDS_H_

// What a shared library needs, read from its file: like ldd, but nothing is
// loaded or run, so it also works where the library could not be loaded.

#include <string>
#include <vector>

#include "lib/base/status.h"

namespace cox {

struct ElfDynamic {
  std::string soname;
  std::vector<std::string> needed;   // DT_NEEDED, in order
  std::vector<std::string> runpath;  // DT_RUNPATH or DT_RPATH, $ORIGIN replaced
};

// NOT_FOUND when there is no such file, DATA_LOSS when it is no 64-bit
// little-endian ELF file with a dynamic section.
absl::StatusOr<ElfDynamic> ReadElfDynamic(const std::string& path);

struct MissingLibrary {
  std::string name;       // "libcublas.so.13"
  std::string needed_by;  // file name of the first library that needs it
};

struct ElfWalk {
  std::vector<std::string> found;  // paths of all that are needed and there
  std::vector<MissingLibrary> missing;
};

// All that `path` needs, directly or not. Each name is looked up in the needing
// file's own run path, then in `folders`. Libraries of the C and C++ runtimes
// and of the kernel are left out: a machine without them runs nothing.
absl::StatusOr<ElfWalk> WalkElfNeeds(const std::string& path,
                                     const std::vector<std::string>& folders);

}  // namespace cox

#endif  // COX_LIB_COMM_ELF_NEEDS_H_
