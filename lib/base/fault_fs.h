#ifndef COX_LIB_BASE_FAULT_FS_H_
#define COX_LIB_BASE_FAULT_FS_H_

// An in-memory file system that loses what POSIX allows to be lost. For tests.
//
// A file's data is durable after Sync(), a directory entry (create, rename,
// remove) after SyncDir() of its folder. Crash() keeps a random subset of the
// rest, in sectors of 512 bytes: a kept sector after a dropped one leaves zeros
// between. A failed Sync() loses the file's unsynced data for good even if a
// later Sync() answers OK, as Linux does.
//
//   FaultFs fs;
//   fs.FailAt(3, absl::ResourceExhaustedError("disk full"));
//   DoWork(fs);
//   fs.Crash(rng);
//   CheckRecovered(fs);
//
// Thread-safe. Paths are taken from one root whether or not they start with
// '/'; folders must be made with MakeDirs before files in them.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/fs.h"
#include "lib/base/rng.h"

namespace cox {

// A file that is read and written at any place, as databases do. Writes beyond
// the end leave zeros between. Errors as WritableFile.
class RandomFile {
 public:
  virtual ~RandomFile() = default;
  // At most `length` bytes: fewer at the end of the file.
  virtual absl::StatusOr<std::string> Read(uint64_t offset, size_t length) = 0;
  virtual absl::Status Write(uint64_t offset, std::string_view data) = 0;
  virtual absl::Status Truncate(uint64_t size) = 0;
  virtual absl::Status Sync() = 0;
  virtual absl::StatusOr<uint64_t> Size() = 0;
};

class FaultFs : public Fs {
 public:
  FaultFs();
  ~FaultFs() override;
  FaultFs(const FaultFs&) = delete;
  FaultFs& operator=(const FaultFs&) = delete;

  // The k-th changing operation from now on (1 = the next one; Create, Append,
  // Sync, Rename, ...) fails with `error`; with `sticky`, so does every later
  // one until Crash(). A failing Append writes half of its data.
  void FailAt(int64_t k, absl::Status error, bool sticky = false);
  // Forgets what FailAt() planned: the disk works again.
  void Heal();
  // Changing operations so far, failed ones included.
  int64_t operations() const;
  // Power loss and restart: open files become unusable (INTERNAL), pending
  // failures are forgotten.
  void Crash(CounterRng& rng);
  // The same disk, unsynced changes included, to be crashed in another way.
  std::unique_ptr<FaultFs> Clone() const;

  // NOT_FOUND unless `create` or it is there.
  absl::StatusOr<std::unique_ptr<RandomFile>> OpenRandom(
      const std::string& path, bool create);

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path,
                                                       bool exclusive) override;
  absl::StatusOr<std::unique_ptr<WritableFile>> OpenAppend(
      const std::string& path) override;
  absl::StatusOr<std::string> ReadAll(const std::string& path) override;
  absl::StatusOr<std::string> ReadRange(const std::string& path,
                                        uint64_t offset,
                                        uint64_t length) override;
  absl::StatusOr<uint64_t> FileSize(const std::string& path) override;
  bool Exists(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(
      const std::string& dir) override;
  absl::Status MakeDirs(const std::string& path, int mode = 0700) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status RemoveAll(const std::string& path) override;
  absl::Status Truncate(const std::string& path, uint64_t size) override;
  absl::Status SyncDir(const std::string& dir) override;

 private:
  struct Impl;
  class File;
  class Random;
  // Shared with open files, which may outlive the file system object.
  std::shared_ptr<Impl> impl_;
};

}  // namespace cox

#endif  // COX_LIB_BASE_FAULT_FS_H_
