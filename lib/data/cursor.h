#ifndef COX_LIB_DATA_CURSOR_H_
#define COX_LIB_DATA_CURSOR_H_

// Which row comes when. A position is one integer, so a checkpoint holds just
// that integer, and any process may ask for any position.

#include <cstdint>
#include <string>
#include <vector>

#include "lib/base/status.h"

namespace cox {

// Visits rows 0..size-1 once per epoch, each epoch in its own order: position
// n is element n % size of Permutation(size, seed, "<stream>/epoch/<n/size>").
// A pure function of (seed, stream, size, n).
//
// Thread-compatible; keeps the last epoch's permutation (8 bytes per row).
class ShuffledCursor {
 public:
  // REQUIRES: size > 0.
  ShuffledCursor(int64_t size, uint64_t seed, std::string stream);

  // Row at `position` >= 0, without moving.
  int64_t At(int64_t position) const;
  // Row at the cursor, then one step on.
  int64_t Next();
  // The next `count` rows; may cross epochs.
  std::vector<int64_t> Take(int64_t count);

  int64_t position() const { return position_; }
  // REQUIRES: position >= 0.
  void Seek(int64_t position);
  int64_t epoch() const { return position_ / size_; }
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  uint64_t seed_;
  std::string stream_;
  int64_t position_ = 0;
  mutable int64_t cached_epoch_ = -1;
  mutable std::vector<int64_t> order_;  // of cached_epoch_
};

// Documents joined into one stream, each followed by the end token, cut into
// blocks of a fixed length: every block is full, no padding, for pretraining.
// Built once; the trailing incomplete block is dropped.
//
// Block n of training is a pure function of (documents, seed, n): the blocks
// are visited by a ShuffledCursor. Immutable, except that Block() caches like
// ShuffledCursor; thread-compatible.
class PackedTokens {
 public:
  // INVALID_ARGUMENT: block_length < 2, no document, fewer tokens than one
  // block. The documents' own order in the stream is
  // Permutation(n, seed, "pack").
  static absl::StatusOr<PackedTokens> Create(
      const std::vector<std::vector<int32_t>>& documents, int32_t end_id,
      int64_t block_length, uint64_t seed);

  int64_t num_blocks() const { return num_blocks_; }
  int64_t block_length() const { return block_length_; }
  // [block_length] ids of training block n >= 0 (n may pass num_blocks: the
  // next epoch).
  std::vector<int32_t> Block(int64_t n) const;
  // [block_length] ids in stream order, 0 <= index < num_blocks: for held-out
  // evaluation.
  std::vector<int32_t> StreamBlock(int64_t index) const;

 private:
  PackedTokens(std::vector<int32_t> stream, int64_t block_length,
               uint64_t seed);
  std::vector<int32_t> stream_;
  int64_t block_length_;
  int64_t num_blocks_;
  ShuffledCursor cursor_;
};

}  // namespace cox

#endif  // COX_LIB_DATA_CURSOR_H_
