#include "cli/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "lib/base/fs.h"
#include "nlohmann/json.hpp"

namespace cox {

absl::StatusOr<Endpoints> ReadEndpoints(const std::string& run_dir) {
  const std::string path = JoinPath(run_dir, "endpoints.json");
  auto text = Fs::Real().ReadAll(path);
  if (!text.ok()) {
    return Annotate(text.status(),
                    absl::StrCat(run_dir, " is not the directory of a run"));
  }
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("coordinator") ||
      !json["coordinator"].is_string()) {
    return absl::DataLossError(
        absl::StrCat(path, ": expected an object with \"coordinator\""));
  }
  Endpoints endpoints;
  endpoints.coordinator = json["coordinator"].get<std::string>();
  endpoints.http = json.value("http", "");
  endpoints.run_id = json.value("run_id", "");
  endpoints.pid = json.value("pid", int64_t{0});
  endpoints.state = json.value("state", "");
  return endpoints;
}

absl::StatusOr<RunLock> RunLock::Acquire(const std::string& run_dir) {
  COX_RETURN_IF_ERROR(Fs::Real().MakeDirs(run_dir));
  const std::string path = JoinPath(run_dir, "run.lock");
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot open ", path, ": errno ", errno));
  }
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(
        run_dir, " is in use by another `cox run`; wait for it or stop it"));
  }
  return RunLock(fd);
}

RunLock::~RunLock() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

}  // namespace cox
