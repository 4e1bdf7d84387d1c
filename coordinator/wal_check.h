#ifndef COX_COORDINATOR_WAL_CHECK_H_
#define COX_COORDINATOR_WAL_CHECK_H_

// Damage in SQLite's write-ahead log, before SQLite reads it.
//
// SQLite takes the first frame whose checksum is wrong for the end of the log:
// after a power loss it usually is. A flipped bit looks the same, and every
// transaction behind it, acknowledged long ago, would be gone without a word.
// What tells them apart is what lies behind:
//
//   - A transaction is synced before the next one is written. Frames of this
//     log behind another transaction's end prove that the damaged one was
//     synced: acknowledged work is lost.
//   - The checksum is linear, 64 bits over words of 32. That one wrong word
//     explains it can be seen, in the last transaction too, and for most bits
//     which word, so that it can be put right.
//
// What neither shows: damage to several words of the last transaction, or of
// the last frame of the one before. For that the segments carry seals
// (segments.h).
//
// Format: https://sqlite.org/fileformat2.html#walformat

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"

namespace cox {

struct WalFix {
  uint64_t offset = 0;
  std::string bytes;  // the four that belong there
};

// What has to be written into the log so that all of it can be read; empty for
// a sound log, and for one that ends in a torn transaction. DATA_LOSS:
// transactions that were synced cannot be read any more.
absl::StatusOr<std::vector<WalFix>> CheckWal(std::string_view wal);

}  // namespace cox

#endif  // COX_COORDINATOR_WAL_CHECK_H_
