#include "cli/doctor_command.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cli/doctor_gpu.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"

namespace cox {
namespace {

bool Line(bool ok, const std::string& what, const std::string& detail) {
  std::printf("%-4s %-22s %s\n", ok ? "ok" : "MISS", what.c_str(),
              detail.c_str());
  return ok;
}

bool CheckBinaries() {
  bool all = true;
  for (const char* name :
       {"cox-coordinator", "cox-actor", "cox-reward", "cox-learner"}) {
    const std::string path = JoinPath(ExecutableDir(), name);
    all &= Line(access(path.c_str(), X_OK) == 0, name,
                access(path.c_str(), X_OK) == 0
                    ? path
                    : absl::StrCat(path,
                                   " is not there: build it, or put all "
                                   "binaries into one folder"));
  }
  return all;
}

bool CheckLoopback() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool ok = fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address),
                                  sizeof(address)) == 0;
  if (fd >= 0) {
    close(fd);
  }
  return Line(ok, "loopback port",
              ok ? "127.0.0.1 gives free ports"
                 : "cannot bind 127.0.0.1: the roles could not talk");
}

std::string CpuFlags() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    if (line.rfind("flags", 0) == 0) {
      return line;
    }
  }
  return "";
}

void DescribeMachine() {
  const std::string flags = CpuFlags();
  std::string isa = "baseline";
  for (const char* flag : {"avx2", "avx512f", "avx512_bf16"}) {
    if (flags.find(flag) != std::string::npos) {
      isa = flag;
    }
  }
  Line(true, "processor",
       absl::StrCat(std::thread::hardware_concurrency(), " cores, ", isa));
  std::ifstream memory("/proc/meminfo");
  std::string key;
  int64_t kb = 0;
  memory >> key >> kb;
  Line(kb >= int64_t{4} << 20, "memory",
       absl::StrCat(kb >> 20, " GiB (the example needs 4)"));
  struct statvfs disk {};
  if (statvfs(".", &disk) == 0) {
    const uint64_t free_gib =
        (static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize) >> 30;
    Line(free_gib >= 1, "disk here", absl::StrCat(free_gib, " GiB free"));
  }
}

}  // namespace

int Doctor(const std::string& device) {
  DescribeMachine();
  bool ok = CheckBinaries();
  ok &= CheckLoopback();
  std::printf("GPU\n");
  bool gpu = true;
  for (const GpuRow& row : InspectGpuFiles(GpuPlacesHere())) {
    std::printf("%-4s %-22s %s\n", row.present ? "ok" : "--", row.what.c_str(),
                row.detail.c_str());
    gpu &= row.present;
  }
  std::printf("%-4s %-22s %s\n", gpu ? "ok" : "--", "device: cuda",
              gpu ? "can be used" : "not here");
  ok &= gpu || device != "cuda";
  std::printf("%s\n", ok ? "doctor: a run can start here"
                         : "doctor: something is missing");
  return ok ? kExitDone : kExitCheckFailed;
}

}  // namespace cox
