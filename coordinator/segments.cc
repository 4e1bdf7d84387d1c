#include "coordinator/segments.h"

#include <algorithm>
#include <utility>

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

}  // namespace

std::string SegmentPath(const std::string& dir, int32_t segment) {
  return JoinPath(dir, absl::StrFormat("%06d.seg", segment));
}

absl::StatusOr<std::unique_ptr<SegmentStore>> SegmentStore::Open(
    Fs& fs, Options options, const std::vector<UnitRow>& units) {
  COX_RETURN_IF_ERROR(fs.MakeDirs(options.dir));
  // A synced file is worth nothing in a folder that a power loss drops.
  COX_RETURN_IF_ERROR(fs.SyncDir(DirName(options.dir)));
  std::unique_ptr<SegmentStore> store(
      new SegmentStore(fs, std::move(options)));
  COX_RETURN_IF_ERROR(store->Recover(units));
  return store;
}

absl::Status SegmentStore::Recover(const std::vector<UnitRow>& units) {
  std::map<int32_t, uint64_t> ends;  // segment -> end of its last row
  for (const UnitRow& unit : units) {
    uint64_t& end = ends[unit.payload.segment];
    end = std::max(end, unit.payload.offset + unit.payload.length);
  }
  for (const auto& [segment, end] : ends) {
    const absl::StatusOr<uint64_t> found = fs_.FileSize(PathOf(segment));
    COX_RETURN_IF_ERROR(LostIfAbsent(found.status()));
    const uint64_t size = *found;
    if (size < end) {
      return absl::DataLossError(
          absl::StrCat(PathOf(segment), ": rows need ", end,
                       " bytes, the file has ", size));
    }
    if (size > end) {
      COX_RETURN_IF_ERROR(fs_.Truncate(PathOf(segment), end));
    }
    segment_ = segment;
    size_ = end;
  }
  // Files behind the last row hold nothing that was acknowledged.
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       fs_.List(options_.dir));
  const std::string last = absl::StrFormat("%06d.seg", segment_);
  for (const std::string& name : names) {
    if (name.size() == last.size() && name.ends_with(".seg") && name > last) {
      COX_RETURN_IF_ERROR(fs_.RemoveAll(JoinPath(options_.dir, name)));
    }
  }
  // Never into a file of an earlier incarnation: it may still run and append,
  // and the offsets of both would be wrong.
  return OpenNext();
}

absl::Status SegmentStore::OpenNext() {
  if (file_ != nullptr) {
    COX_RETURN_IF_ERROR(Sync());
    COX_RETURN_IF_ERROR(file_->Close());
  }
  ++segment_;
  size_ = 0;
  new_file_ = true;
  COX_ASSIGN_OR_RETURN(file_,
                       fs_.Create(PathOf(segment_), /*exclusive=*/true));
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

absl::Status SegmentStore::Sync() {
  if (failed_) {
    return absl::InternalError("segments: an earlier write failed");
  }
  absl::Status status = file_->Sync();
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
    return absl::DataLossError(absl::StrCat(
        path, ": bytes ", ref.offset, "+", ref.length,
        " do not hash to ", sha256));
  }
  return bytes;
}

}  // namespace cox
