#include "lib/rpc/chunk_codec.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "cox/v1/types.pb.h"
#include "lib/base/hash.h"
#include "lib/rpc/limits.h"

namespace cox {
namespace {

// Protocol Buffers' encoding: a tag is (field << 3) | wire type.
constexpr uint32_t kVarint = 0;
constexpr uint32_t kFixed64 = 1;
constexpr uint32_t kBytes = 2;
constexpr uint32_t kFixed32 = 5;
constexpr uint32_t Tag(int field, uint32_t type) {
  return static_cast<uint32_t>(field) << 3 | type;
}
constexpr uint32_t kOffsetTag =
    Tag(cox::v1::Chunk::kOffsetFieldNumber, kVarint);
constexpr uint32_t kDataTag = Tag(cox::v1::Chunk::kDataFieldNumber, kBytes);
constexpr uint32_t kXxh3Tag = Tag(cox::v1::Chunk::kXxh3FieldNumber, kBytes);

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) {
    out->push_back(static_cast<char>(value | 0x80));
  }
  out->push_back(static_cast<char>(value));
}

// Reads across the borders of slices.
class Cursor {
 public:
  explicit Cursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    Settle();
  }
  bool done() const { return slice_ == slices_.size(); }

  std::optional<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !done(); shift += 7) {
      const uint8_t byte = slices_[slice_].begin()[at_++];
      Settle();
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }
  // False when fewer bytes are left.
  bool Take(uint64_t length, std::vector<std::string_view>* pieces) {
    while (length > 0) {
      if (done()) return false;
      const grpc::Slice& slice = slices_[slice_];
      const size_t n =
          static_cast<size_t>(std::min<uint64_t>(length, slice.size() - at_));
      pieces->emplace_back(reinterpret_cast<const char*>(slice.begin()) + at_,
                           n);
      at_ += n;
      length -= n;
      Settle();
    }
    return true;
  }

 private:
  void Settle() {
    while (slice_ < slices_.size() && at_ == slices_[slice_].size()) {
      ++slice_;
      at_ = 0;
    }
  }

  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  size_t at_ = 0;
};

absl::Status Malformed(std::string_view what) {
  return absl::DataLossError(
      absl::StrCat("chunk: malformed message (",
                   absl::string_view(what.data(), what.size()), ")"));
}

// A field of a later version of the contract.
bool Skip(uint64_t tag, Cursor* cursor) {
  std::vector<std::string_view> ignored;
  switch (tag & 7) {
    case kVarint:
      return cursor->Varint().has_value();
    case kFixed64:
      return cursor->Take(8, &ignored);
    case kFixed32:
      return cursor->Take(4, &ignored);
    case kBytes: {
      const std::optional<uint64_t> length = cursor->Varint();
      return length.has_value() && cursor->Take(*length, &ignored);
    }
    default:
      return false;
  }
}

}  // namespace

grpc::ByteBuffer EncodeChunk(const std::shared_ptr<const Snapshot>& snapshot,
                             uint64_t begin, uint64_t end) {
  const std::span<const std::byte> bytes = snapshot->arena->bytes().subspan(
      static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  const std::string_view data(reinterpret_cast<const char*>(bytes.data()),
                              bytes.size());
  std::string header;
  if (begin != 0) {
    AppendVarint(kOffsetTag, &header);
    AppendVarint(begin, &header);
  }
  const std::string xxh3 = Xxh3_128(data);
  AppendVarint(kXxh3Tag, &header);
  AppendVarint(xxh3.size(), &header);
  header += xxh3;
  AppendVarint(kDataTag, &header);
  AppendVarint(data.size(), &header);
  using Owner = std::shared_ptr<const Snapshot>;
  const grpc::Slice slices[] = {
      grpc::Slice(header),
      // gRPC only reads; its interface knows no const.
      grpc::Slice(
          const_cast<char*>(data.data()), data.size(),
          [](void* owner) { delete static_cast<Owner*>(owner); },
          new Owner(snapshot))};
  return grpc::ByteBuffer(slices, 2);
}

absl::StatusOr<ChunkView> ChunkView::Parse(const grpc::ByteBuffer& buffer) {
  ChunkView view;
  if (!buffer.Dump(&view.slices_).ok()) return Malformed("no bytes");
  Cursor cursor(view.slices_);
  while (!cursor.done()) {
    const std::optional<uint64_t> tag = cursor.Varint();
    if (!tag.has_value()) return Malformed("tag");
    if (*tag == kOffsetTag) {
      const std::optional<uint64_t> offset = cursor.Varint();
      if (!offset.has_value()) return Malformed("offset");
      view.offset_ = *offset;
    } else if (*tag == kDataTag) {
      const std::optional<uint64_t> size = cursor.Varint();
      view.pieces_.clear();
      if (!size.has_value() || *size > kChunkBytes ||
          !cursor.Take(*size, &view.pieces_)) {
        return Malformed("data");
      }
      view.size_ = *size;
    } else if (*tag == kXxh3Tag) {
      const std::optional<uint64_t> size = cursor.Varint();
      std::vector<std::string_view> pieces;
      if (!size.has_value() || *size > 16 || !cursor.Take(*size, &pieces)) {
        return Malformed("xxh3");
      }
      view.xxh3_.clear();
      for (const std::string_view piece : pieces) view.xxh3_ += piece;
    } else if (!Skip(*tag, &cursor)) {
      return Malformed("unknown field");
    }
  }
  return view;
}

}  // namespace cox
