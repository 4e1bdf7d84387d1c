#include "lib/data/cursor.h"

#include <utility>

#include "lib/base/rng.h"

namespace cox {

ShuffledCursor::ShuffledCursor(int64_t size, uint64_t seed, std::string stream)
    : size_(size), seed_(seed), stream_(std::move(stream)) {
  COX_CHECK(size > 0);
}

int64_t ShuffledCursor::At(int64_t position) const {
  COX_CHECK(position >= 0);
  const int64_t epoch = position / size_;
  if (epoch != cached_epoch_) {
    order_ = Permutation(size_, seed_, absl::StrCat(stream_, "/epoch/", epoch));
    cached_epoch_ = epoch;
  }
  return order_[static_cast<size_t>(position % size_)];
}

int64_t ShuffledCursor::Next() { return At(position_++); }

std::vector<int64_t> ShuffledCursor::Take(int64_t count) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back(Next());
  }
  return rows;
}

void ShuffledCursor::Seek(int64_t position) {
  COX_CHECK(position >= 0);
  position_ = position;
}

PackedTokens::PackedTokens(std::vector<int32_t> stream, int64_t block_length,
                           uint64_t seed)
    : stream_(std::move(stream)),
      block_length_(block_length),
      num_blocks_(static_cast<int64_t>(stream_.size()) / block_length),
      cursor_(num_blocks_, seed, "blocks") {}

absl::StatusOr<PackedTokens> PackedTokens::Create(
    const std::vector<std::vector<int32_t>>& documents, int32_t end_id,
    int64_t block_length, uint64_t seed) {
  if (block_length < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "block length: expected at least 2, found ", block_length));
  }
  std::vector<int32_t> stream;
  const auto count = static_cast<int64_t>(documents.size());
  for (const int64_t index : Permutation(count, seed, "pack")) {
    const std::vector<int32_t>& ids = documents[static_cast<size_t>(index)];
    stream.insert(stream.end(), ids.begin(), ids.end());
    stream.push_back(end_id);
  }
  if (static_cast<int64_t>(stream.size()) < block_length) {
    return absl::InvalidArgumentError(absl::StrCat(
        "packing: expected at least one block of ", block_length,
        " tokens, found ", stream.size(), " tokens in ", count, " documents"));
  }
  return PackedTokens(std::move(stream), block_length, seed);
}

std::vector<int32_t> PackedTokens::Block(int64_t n) const {
  return StreamBlock(cursor_.At(n));
}

std::vector<int32_t> PackedTokens::StreamBlock(int64_t index) const {
  COX_CHECK(index >= 0 && index < num_blocks_);
  const auto first = stream_.begin() + index * block_length_;
  return {first, first + block_length_};
}

}  // namespace cox
