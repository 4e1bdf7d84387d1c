#ifndef COX_LIB_BASE_FS_H_
#define COX_LIB_BASE_FS_H_

// Durable state goes through this seam only, so that a test can lose unsynced
// data, tear the last write or fail the k-th operation.
//
// Order that makes a file durable: write temporary, Sync, Close, Rename,
// SyncDir (docs/architecture.md, "Durability"). A failed Sync is never retried
// on the same file: the kernel may have dropped the pages already.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"

namespace cox {

// An append-only file. Thread-compatible. Dropping it without Close() loses
// nothing that was written, but reports no error either.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual absl::Status Append(std::string_view data) = 0;
  virtual absl::Status Sync() = 0;   // fdatasync
  virtual absl::Status Close() = 0;  // idempotent
};

// Errors carry the path: NOT_FOUND, ALREADY_EXISTS, RESOURCE_EXHAUSTED
// (ENOSPC, EDQUOT), INTERNAL otherwise. Thread-safe.
class Fs {
 public:
  virtual ~Fs() = default;
  // Truncates, or fails with ALREADY_EXISTS when `exclusive`.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path, bool exclusive) = 0;
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> OpenAppend(
      const std::string& path) = 0;
  virtual absl::StatusOr<std::string> ReadAll(const std::string& path) = 0;
  // OUT_OF_RANGE when the file ends before offset + length.
  virtual absl::StatusOr<std::string> ReadRange(const std::string& path,
                                                uint64_t offset,
                                                uint64_t length) = 0;
  virtual absl::StatusOr<uint64_t> FileSize(const std::string& path) = 0;
  virtual bool Exists(const std::string& path) = 0;
  virtual absl::StatusOr<std::vector<std::string>> List(
      const std::string& dir) = 0;  // names, sorted
  virtual absl::Status MakeDirs(const std::string& path, int mode = 0700) = 0;
  virtual absl::Status Rename(const std::string& from,
                              const std::string& to) = 0;
  virtual absl::Status RemoveAll(const std::string& path) = 0;
  virtual absl::Status Truncate(const std::string& path, uint64_t size) = 0;
  virtual absl::Status SyncDir(const std::string& dir) = 0;
  static Fs& Real();
};

// `path`.tmp + Sync + Rename + SyncDir in one call. After OK the file holds
// `data` whatever happens next. After an error or a crash it holds either the
// old content (or absence) or all of `data` (the rename happened, its SyncDir
// failed), never a mixture. One writer per path at a time.
absl::Status WriteFileDurably(Fs& fs, const std::string& path,
                              std::string_view data);

std::string JoinPath(std::string_view a, std::string_view b);
std::string DirName(std::string_view path);
std::string BaseName(std::string_view path);

}  // namespace cox

#endif  // COX_LIB_BASE_FS_H_
