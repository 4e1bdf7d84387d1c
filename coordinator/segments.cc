#include "coordinator/segments.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "lib/base/hash.h"

namespace cox {
namespace {

// Bytes that a row points at must be there: their absence is lost data, not a
// wrong name.
absl::Status LostIfAbsent(const absl::Status& status) {
  if (absl::IsNotFound(status) || absl::IsOutOfRange(status)) {
    return absl::DataLossError(status.message());
  }
  return status;
}

constexpr std::string_view kSealMark = "COXSEAL1";
constexpr size_t kSealBytes = 24;

std::string Seal(int64_t transaction) {
  std::string seal(kSealMark);
  for (int shift = 0; shift < 64; shift += 8) {
    seal += static_cast<char>(static_cast<uint64_t>(transaction) >> shift);
  }
  return seal + Xxh3_128(seal).substr(0, 8);
}

// Of the seals in `bytes`; 0 = none.
int64_t LastSealed(std::string_view bytes) {
  int64_t last = 0;
  for (size_t at = bytes.find(kSealMark); at != std::string_view::npos;
       at = bytes.find(kSealMark, at + 1)) {
    if (bytes.size() - at < kSealBytes) {
      break;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < 8; ++i) {
      value |= uint64_t{static_cast<uint8_t>(bytes[at + 8 + i])} << (8 * i);
    }
    const auto transaction = static_cast<int64_t>(value);
    if (bytes.substr(at, kSealBytes) == Seal(transaction)) {
      last = std::max(last, transaction);
    }
  }
  return last;
}

// "000012.seg"
std::optional<int32_t> NumberOf(const std::string& name) {
  int32_t number = 0;
  const std::string text = name.substr(0, name.find('.'));
  if (name.ends_with(".seg") && absl::SimpleAtoi(text, &number) &&
      absl::StrFormat("%06d.seg", number) == name) {
    return number;
  }
  return std::nullopt;
}

}  // namespace

std::string SegmentPath(const std::string& dir, int32_t segment) {
  return JoinPath(dir, absl::StrFormat("%06d.seg", segment));
}

absl::StatusOr<std::unique_ptr<SegmentStore>> SegmentStore::Open(
    Fs& fs, Options options, const std::vector<UnitRow>& units,
    const std::vector<SegmentRemovedRow>& removed, int64_t last_transaction) {
  COX_RETURN_IF_ERROR(fs.MakeDirs(options.dir));
  // A synced file is worth nothing in a folder that a power loss drops.
  COX_RETURN_IF_ERROR(fs.SyncDir(DirName(options.dir)));
  std::unique_ptr<SegmentStore> store(new SegmentStore(fs, std::move(options)));
  COX_RETURN_IF_ERROR(store->Recover(units, removed, last_transaction));
  return store;
}

absl::Status SegmentStore::Recover(
    const std::vector<UnitRow>& units,
    const std::vector<SegmentRemovedRow>& removed, int64_t last_transaction) {
  std::set<int32_t> gone;
  for (const SegmentRemovedRow& row : removed) {
    gone.insert(row.segment);
    segment_ = std::max(segment_, row.segment);
  }
  std::map<int32_t, uint64_t> ends;  // segment -> end of its last row
  for (const UnitRow& unit : units) {
    if (gone.contains(unit.payload.segment)) {
      continue;
    }
    uint64_t& end = ends[unit.payload.segment];
    end = std::max(end, unit.payload.offset + unit.payload.length);
  }
  for (const auto& [place, payloads] : options_.left_out.payloads) {
    if (!gone.contains(place.first)) {
      uint64_t& end = ends[place.first];
      end = std::max(end, payloads.end);
    }
  }
  COX_RETURN_IF_ERROR(CheckSeals(ends, last_transaction));
  for (const int32_t segment : gone) {
    COX_RETURN_IF_ERROR(Remove(segment));
  }
  for (const auto& [segment, end] : ends) {
    const absl::StatusOr<uint64_t> found = fs_.FileSize(PathOf(segment));
    COX_RETURN_IF_ERROR(LostIfAbsent(found.status()));
    const uint64_t size = *found;
    if (size < end) {
      return absl::DataLossError(absl::StrCat(
          PathOf(segment), ": rows need ", end, " bytes, the file has ", size));
    }
    if (size > end) {
      COX_RETURN_IF_ERROR(fs_.Truncate(PathOf(segment), end));
    }
    segment_ = std::max(segment_, segment);
  }
  // Files behind the last row hold nothing that was acknowledged.
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       fs_.List(options_.dir));
  for (const std::string& name : names) {
    if (NumberOf(name).value_or(0) > segment_) {
      COX_RETURN_IF_ERROR(fs_.RemoveAll(JoinPath(options_.dir, name)));
    }
  }
  // Never into a file of an earlier incarnation: it may still run and append,
  // and the offsets of both would be wrong.
  return OpenNext();
}

// The newest seals lie behind the last payload that has a row.
absl::Status SegmentStore::CheckSeals(const std::map<int32_t, uint64_t>& ends,
                                      int64_t last_transaction) {
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       fs_.List(options_.dir));
  const int32_t last = ends.empty() ? 0 : ends.rbegin()->first;
  for (const std::string& name : names) {
    const std::optional<int32_t> segment = NumberOf(name);
    if (!segment.has_value() || *segment < last) {
      continue;
    }
    const std::string path = PathOf(*segment);
    COX_ASSIGN_OR_RETURN(const uint64_t size, fs_.FileSize(path));
    const uint64_t from = *segment == last ? ends.rbegin()->second : 0;
    if (size < from + kSealBytes) {
      continue;
    }
    COX_ASSIGN_OR_RETURN(const std::string tail,
                         fs_.ReadRange(path, from, size - from));
    const int64_t sealed = LastSealed(tail);
    if (sealed > last_transaction) {
      return absl::DataLossError(absl::StrCat(
          path, ": transaction ", sealed,
          " was committed, the ledger ends with ", last_transaction,
          ": ledger.db or ledger.db-wal was damaged, deleted or replaced by an "
          "older copy. Put back both as they were, or start a new run "
          "directory from a checkpoint"));
    }
  }
  return absl::OkStatus();
}

absl::Status SegmentStore::Remove(int32_t segment) {
  const std::string path = PathOf(segment);
  return fs_.Exists(path) ? fs_.RemoveAll(path) : absl::OkStatus();
}

absl::Status SegmentStore::OpenNext() {
  if (file_ != nullptr) {
    COX_RETURN_IF_ERROR(Sync());
    COX_RETURN_IF_ERROR(file_->Close());
  }
  ++segment_;
  size_ = 0;
  new_file_ = true;
  COX_ASSIGN_OR_RETURN(file_, fs_.Create(PathOf(segment_), /*exclusive=*/true));
  return absl::OkStatus();
}

absl::StatusOr<PayloadRef> SegmentStore::Append(std::string_view payload) {
  if (failed_) {
    return absl::InternalError("segments: an earlier write failed");
  }
  if (size_ > 0 && size_ + payload.size() > options_.segment_bytes) {
    const absl::Status next = OpenNext();
    if (!next.ok()) {
      failed_ = true;
      return next;
    }
  }
  const absl::Status status = file_->Append(payload);
  if (!status.ok()) {
    failed_ = true;
    return status;
  }
  const PayloadRef ref{segment_, size_, payload.size()};
  size_ += payload.size();
  return ref;
}

absl::Status SegmentStore::Sync(int64_t committed) {
  if (failed_) {
    return absl::InternalError("segments: an earlier write failed");
  }
  absl::Status status;
  if (committed > 0) {
    status = file_->Append(Seal(committed));
    size_ += kSealBytes;
  }
  if (status.ok()) {
    status = file_->Sync();
  }
  if (status.ok() && new_file_) {
    status = fs_.SyncDir(options_.dir);
    new_file_ = false;
  }
  failed_ = !status.ok();
  return status;
}

absl::StatusOr<std::string> ReadPayload(Fs& fs, const std::string& dir,
                                        const PayloadRef& ref,
                                        const std::string& sha256) {
  const std::string path = SegmentPath(dir, ref.segment);
  absl::StatusOr<std::string> bytes =
      fs.ReadRange(path, ref.offset, ref.length);
  COX_RETURN_IF_ERROR(LostIfAbsent(bytes.status()));
  if (Sha256Hex(std::string_view(*bytes)) != sha256) {
    return absl::DataLossError(absl::StrCat(path, ": bytes ", ref.offset, "+",
                                            ref.length, " do not hash to ",
                                            sha256));
  }
  return bytes;
}

}  // namespace cox
