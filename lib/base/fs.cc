#include "lib/base/fs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "lib/base/failpoint.h"

namespace cox {
namespace {

absl::Status ErrnoStatus(int error, std::string_view operation,
                         const std::string& path) {
  const std::string message =
      absl::StrCat(absl::string_view(operation.data(), operation.size()), " ",
                   path, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EEXIST:
      return absl::AlreadyExistsError(message);
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

// Closes on scope exit.
class ScopedFd {
 public:
  explicit ScopedFd(int fd) : fd_(fd) {}
  ~ScopedFd() {
    if (fd_ >= 0) close(fd_);
  }
  ScopedFd(const ScopedFd&) = delete;
  ScopedFd& operator=(const ScopedFd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(std::string path, int fd)
      : path_(std::move(path)), fd_(fd) {}
  ~PosixWritableFile() override {
    if (fd_ >= 0) close(fd_);
  }
  PosixWritableFile(const PosixWritableFile&) = delete;
  PosixWritableFile& operator=(const PosixWritableFile&) = delete;

  absl::Status Append(std::string_view data) override {
    if (fd_ < 0) return Closed("append");
    COX_RETURN_IF_ERROR(Annotate(FailpointStatus("fs.append"), path_));
    while (!data.empty()) {
      const ssize_t n = write(fd_, data.data(), data.size());
      if (n < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus(errno, "write", path_);
      }
      data.remove_prefix(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    if (fd_ < 0) return Closed("sync");
    COX_RETURN_IF_ERROR(Annotate(FailpointStatus("fs.sync"), path_));
    if (fdatasync(fd_) != 0) return ErrnoStatus(errno, "fdatasync", path_);
    return absl::OkStatus();
  }

  absl::Status Close() override {
    if (fd_ < 0) return absl::OkStatus();
    // The descriptor is gone whatever close() answers.
    const int result = close(std::exchange(fd_, -1));
    if (result != 0 && errno != EINTR) {
      return ErrnoStatus(errno, "close", path_);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Closed(std::string_view operation) const {
    return absl::InternalError(
        absl::StrCat(absl::string_view(operation.data(), operation.size()), " ",
                     path_, ": file is closed"));
  }

  const std::string path_;
  int fd_;
};

absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWriting(
    const std::string& path, int flags) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC | flags, 0600);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  return std::make_unique<PosixWritableFile>(path, fd);
}

absl::Status ReadFully(int fd, const std::string& path, uint64_t offset,
                       std::span<char> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = pread(fd, out.data() + done, out.size() - done,
                            static_cast<off_t>(offset + done));
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "read", path);
    }
    if (n == 0) {
      return absl::OutOfRangeError(absl::StrCat("read ", path, ": wanted ",
                                                out.size(), " bytes at ",
                                                offset, ", found ", done));
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> RegularFileSize(int fd, const std::string& path) {
  struct stat info;
  if (fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InternalError(
        absl::StrCat("read ", path, ": not a regular file"));
  }
  return static_cast<uint64_t>(info.st_size);
}

class PosixFs : public Fs {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path, bool exclusive) override {
    return OpenForWriting(path, O_CREAT | (exclusive ? O_EXCL : O_TRUNC));
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> OpenAppend(
      const std::string& path) override {
    return OpenForWriting(path, O_CREAT | O_APPEND);
  }

  absl::StatusOr<std::string> ReadAll(const std::string& path) override {
    const ScopedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.get() < 0) return ErrnoStatus(errno, "open", path);
    COX_ASSIGN_OR_RETURN(const uint64_t size, RegularFileSize(fd.get(), path));
    std::string data(static_cast<size_t>(size), '\0');
    COX_RETURN_IF_ERROR(ReadFully(fd.get(), path, 0, data));
    return data;
  }

  absl::StatusOr<std::string> ReadRange(const std::string& path,
                                        uint64_t offset,
                                        uint64_t length) override {
    const ScopedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.get() < 0) return ErrnoStatus(errno, "open", path);
    COX_ASSIGN_OR_RETURN(const uint64_t size, RegularFileSize(fd.get(), path));
    // Before any allocation: `length` may come from a damaged header.
    if (offset > size || length > size - offset) {
      return absl::OutOfRangeError(absl::StrCat("read ", path, ": wanted ",
                                                length, " bytes at ", offset,
                                                ", the file has ", size));
    }
    std::string data(static_cast<size_t>(length), '\0');
    COX_RETURN_IF_ERROR(ReadFully(fd.get(), path, offset, data));
    return data;
  }

  absl::StatusOr<uint64_t> FileSize(const std::string& path) override {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) {
      return ErrnoStatus(errno, "stat", path);
    }
    return static_cast<uint64_t>(info.st_size);
  }

  bool Exists(const std::string& path) override {
    return access(path.c_str(), F_OK) == 0;
  }

  absl::StatusOr<std::vector<std::string>> List(
      const std::string& dir) override {
    std::error_code error;
    std::filesystem::directory_iterator it(dir, error);
    std::vector<std::string> names;
    while (!error && it != std::filesystem::directory_iterator()) {
      names.push_back(it->path().filename().string());
      it.increment(error);
    }
    if (error) return ErrnoStatus(error.value(), "list", dir);
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::Status MakeDirs(const std::string& path, int mode) override {
    for (size_t end = 1; end <= path.size(); ++end) {
      if (end != path.size() && path[end] != '/') continue;
      const std::string prefix = path.substr(0, end);
      if (mkdir(prefix.c_str(), static_cast<mode_t>(mode)) == 0) continue;
      const int error = errno;
      struct stat info;
      if (stat(prefix.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) continue;
      return ErrnoStatus(error, "mkdir", prefix);
    }
    return absl::OkStatus();
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (rename(from.c_str(), to.c_str()) != 0) {
      return ErrnoStatus(errno, "rename", absl::StrCat(from, " to ", to));
    }
    return absl::OkStatus();
  }

  absl::Status RemoveAll(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) return ErrnoStatus(error.value(), "remove", path);
    return absl::OkStatus();
  }

  absl::Status Truncate(const std::string& path, uint64_t size) override {
    if (truncate(path.c_str(), static_cast<off_t>(size)) != 0) {
      return ErrnoStatus(errno, "truncate", path);
    }
    return absl::OkStatus();
  }

  absl::Status SyncDir(const std::string& dir) override {
    const ScopedFd fd(open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd.get() < 0) return ErrnoStatus(errno, "open", dir);
    if (fsync(fd.get()) != 0) return ErrnoStatus(errno, "fsync", dir);
    return absl::OkStatus();
  }
};

absl::Status WriteAndSync(Fs& fs, const std::string& path,
                          std::string_view data) {
  COX_ASSIGN_OR_RETURN(auto file, fs.Create(path, /*exclusive=*/false));
  COX_RETURN_IF_ERROR(file->Append(data));
  COX_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

}  // namespace

Fs& Fs::Real() {
  static PosixFs fs;
  return fs;
}

absl::Status WriteFileDurably(Fs& fs, const std::string& path,
                              std::string_view data) {
  const std::string temporary = path + ".tmp";
  absl::Status written = WriteAndSync(fs, temporary, data);
  if (written.ok()) written = fs.Rename(temporary, path);
  if (!written.ok()) {
    // Best effort: a leftover is overwritten by the next attempt.
    fs.RemoveAll(temporary).IgnoreError();
    return written;
  }
  return fs.SyncDir(DirName(path));
}

std::string JoinPath(std::string_view a, std::string_view b) {
  if (a.empty()) return std::string(b);
  std::string path(a);
  if (path.back() != '/') path += '/';
  while (!b.empty() && b.front() == '/') b.remove_prefix(1);
  path += b;
  return path;
}

std::string DirName(std::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  if (slash == 0) return "/";
  return std::string(path.substr(0, slash));
}

std::string BaseName(std::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return std::string(path);
  return std::string(path.substr(slash + 1));
}

}  // namespace cox
