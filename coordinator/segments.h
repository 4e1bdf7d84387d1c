#ifndef COX_COORDINATOR_SEGMENTS_H_
#define COX_COORDINATOR_SEGMENTS_H_

// Payloads of submitted units in append-only files, segments/000001.seg, ...
// A file is nothing but payloads back to back: offsets, lengths and hashes are
// in the ledger's rows. Bytes without a row are garbage: behind the last row
// they are cut at start, between rows they are skipped. Each incarnation of the
// coordinator begins a file of its own (rule 1).
//
// Seals stand between payloads: whoever synced one had committed the ledger's
// transaction that it names before. They cost no sync of their own, and tell at
// the next start when a ledger, or its log, ends earlier than what was
// acknowledged: damaged, deleted, or an old copy.
//
//   seal: "COXSEAL1", u64 transaction (little-endian), 8 bytes of XXH3 of both
//
// Append, Sync, then the row (rule 4): a row never points at bytes that may
// vanish. After a failed Append or Sync nothing more may be written; the
// process ends (rule 5).

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/ledger.h"
#include "lib/base/fs.h"

namespace cox {

// A payload of the folder `dir`, read and hashed. DATA_LOSS when the bytes are
// not all there or do not hash to `sha256`.
absl::StatusOr<std::string> ReadPayload(Fs& fs, const std::string& dir,
                                        const PayloadRef& ref,
                                        const std::string& sha256);
std::string SegmentPath(const std::string& dir, int32_t segment);

// Append and Sync on one thread; Read from any, concurrently.
class SegmentStore {
 public:
  struct Options {
    std::string dir;
    uint64_t segment_bytes = uint64_t{256} << 20;  // then the next file
    LeftOutRows left_out = {};  // units that are not among those of Open()
  };
  // Cuts garbage behind the last of `units`, and deletes what is left of the
  // files that have a row of `removed`. `last_transaction`: the ledger's.
  // DATA_LOSS when a unit's bytes are not all there, or when a seal names a
  // later transaction; nothing is changed then.
  static absl::StatusOr<std::unique_ptr<SegmentStore>> Open(
      Fs& fs, Options options, const std::vector<UnitRow>& units,
      const std::vector<SegmentRemovedRow>& removed = {},
      int64_t last_transaction = INT64_MAX);

  // Not durable before Sync().
  absl::StatusOr<PayloadRef> Append(std::string_view payload);
  // With a seal that `committed`, a transaction of the ledger, is durable;
  // 0 = without.
  absl::Status Sync(int64_t committed = 0);
  // Deletes the file of a closed segment. Its row must be durable: what is
  // left after an error or a crash, the next Open() deletes.
  absl::Status Remove(int32_t segment);
  absl::StatusOr<std::string> Read(const PayloadRef& ref,
                                   const std::string& sha256) const {
    return ReadPayload(fs_, options_.dir, ref, sha256);
  }

 private:
  SegmentStore(Fs& fs, Options options)
      : fs_(fs), options_(std::move(options)) {}
  std::string PathOf(int32_t segment) const {
    return SegmentPath(options_.dir, segment);
  }
  absl::Status Recover(const std::vector<UnitRow>& units,
                       const std::vector<SegmentRemovedRow>& removed,
                       int64_t last_transaction);
  absl::Status CheckSeals(const std::map<int32_t, uint64_t>& ends,
                          int64_t last_transaction);
  absl::Status OpenNext();

  Fs& fs_;
  const Options options_;
  int32_t segment_ = 0;  // being written
  uint64_t size_ = 0;
  bool new_file_ = false;  // its directory entry is not synced yet
  bool failed_ = false;
  std::unique_ptr<WritableFile> file_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_SEGMENTS_H_
