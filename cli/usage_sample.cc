#include "cli/usage_sample.h"

#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace cox {
namespace {

// "Pss:   1234 kB" in bytes.
int64_t Kilobytes(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) == 0) {
      std::istringstream rest(line.substr(key.size()));
      int64_t kb = 0;
      rest >> kb;
      return kb * 1024;
    }
  }
  return 0;
}

}  // namespace

ProcessUsage UsageOf(pid_t pid, bool with_pss) {
  ProcessUsage usage;
  const std::string proc = absl::StrCat("/proc/", pid);
  std::ifstream in(proc + "/stat");
  std::string text;
  std::getline(in, text);
  // The name, in parentheses, may hold anything.
  const size_t end = text.rfind(')');
  if (end == std::string::npos) return usage;
  std::istringstream rest(text.substr(end + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) rest >> skipped;
  double user = 0;
  double system = 0;
  rest >> user >> system;
  usage.cpu_s = (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
  usage.rss_bytes = Kilobytes(proc + "/status", "VmRSS:");
  usage.private_bytes = Kilobytes(proc + "/status", "RssAnon:");
  if (with_pss) {
    usage.pss_bytes = Kilobytes(proc + "/smaps_rollup", "Pss:");
  }
  return usage;
}

}  // namespace cox
