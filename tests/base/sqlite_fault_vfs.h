#ifndef COX_TESTS_BASE_SQLITE_FAULT_VFS_H_
#define COX_TESTS_BASE_SQLITE_FAULT_VFS_H_

// SQLite on a FaultFs: while an object of this class lives, every database of
// this process that names no VFS lies there. Locks and shared memory exist
// within the process; a crash forgets them.
//
// It asks for what SQLite's own VFS for Linux asks for: a new journal or log
// has its folder synced with its first sync, a database file has not.

#include <memory>

#include "lib/base/fault_fs.h"

namespace cox {

// At most one at a time. Thread-compatible.
class SqliteFaultVfs {
 public:
  explicit SqliteFaultVfs(FaultFs* fs);
  ~SqliteFaultVfs();
  SqliteFaultVfs(const SqliteFaultVfs&) = delete;
  SqliteFaultVfs& operator=(const SqliteFaultVfs&) = delete;

  // Another disk, or the same one after a crash. Databases that are open from
  // before get errors.
  void Use(FaultFs* fs);

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace cox

#endif  // COX_TESTS_BASE_SQLITE_FAULT_VFS_H_
