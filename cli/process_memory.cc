#include "cli/process_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace cox {
namespace {

// "VmHWM:   1234 kB" of /proc/self/status in bytes.
double StatusBytes(const std::string& key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) == 0) {
      std::istringstream rest(line.substr(key.size()));
      double kb = 0;
      rest >> kb;
      return kb * 1024;
    }
  }
  return 0;
}

// Resident bytes of this binary's mappings that are still the file's.
double ProgramBytes() {
  char path[4096];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
  if (n <= 0) return 0;
  const std::string binary(path, static_cast<size_t>(n));
  std::ifstream in("/proc/self/smaps");
  bool own = false;
  double kb_of_file = 0;
  double resident = 0;
  for (std::string line; std::getline(in, line);) {
    std::istringstream rest(line);
    std::string key;
    rest >> key;
    if (key == "Rss:") {
      rest >> resident;
    } else if (key == "Anonymous:") {
      double anonymous = 0;
      rest >> anonymous;
      kb_of_file += own ? resident - anonymous : 0;
    } else if (!key.empty() && key.back() != ':') {  // "from-to perms ... path"
      own = line.ends_with(binary);
    }
  }
  return kb_of_file * 1024;
}

}  // namespace

ProcessMemory OwnMemory() {
  const double files = StatusBytes("RssFile:");
  ProcessMemory memory;
  memory.peak_private = StatusBytes("VmHWM:") - files;
  memory.program = ProgramBytes();
  memory.libraries = std::max(0.0, files - memory.program);
  return memory;
}

}  // namespace cox
