#ifndef COX_LIB_WEIGHTS_SNAPSHOT_H_
#define COX_LIB_WEIGHTS_SNAPSHOT_H_

// Immutable weights of one version, and the two ways to get one: hashing what
// this process computed, or assembling verified chunks from the network.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"
#include "lib/base/sync.h"
#include "lib/weights/manifest.h"
#include "lib/weights/prefix_hasher.h"

namespace cox {

// Contiguous 64-byte aligned memory, zeroed at birth. Not copyable.
class Arena {
 public:
  explicit Arena(uint64_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::span<std::byte> bytes() { return {data_, static_cast<size_t>(size_)}; }
  std::span<const std::byte> bytes() const {
    return {data_, static_cast<size_t>(size_)};
  }
  std::span<float> floats();
  std::span<const float> floats() const;

 private:
  std::byte* data_;
  uint64_t size_;
};

// Shared because a swap, a relay upload and a checkpoint may all read one
// version at once; never written after creation.
struct Snapshot {
  Manifest manifest;
  std::string content_hash;
  std::shared_ptr<const Arena> arena;

  // Bytes of a tensor. NOT_FOUND names it.
  absl::StatusOr<std::span<const std::byte>> Tensor(
      std::string_view name) const;
};

// Hashes every tensor of `arena` and the manifest. `layout` from LayOut().
// INVALID_ARGUMENT when the arena's size is not the layout's. Costs a pass over
// the arena (in several threads above 8 MiB).
absl::StatusOr<std::shared_ptr<const Snapshot>> MakeSnapshot(
    Manifest layout, std::shared_ptr<const Arena> arena);

// Hashes the arena again, as it is in memory now. DATA_LOSS names the first
// tensor that is not what the manifest says.
absl::Status VerifySnapshot(const Snapshot& snapshot);

// Copies `parameters` (arena_bytes / 4 floats) and hashes.
absl::StatusOr<std::shared_ptr<const Snapshot>> SnapshotFromFloats(
    const Manifest& layout, std::span<const float> parameters);

// Receives chunks of one version in any order. Thread-compatible.
class SnapshotAssembler {
 public:
  // INVALID_ARGUMENT when the manifest is malformed, larger than `max_bytes`
  // (checked before memory is taken), or does not hash to `content_hash`.
  static absl::StatusOr<std::unique_ptr<SnapshotAssembler>> Create(
      Manifest manifest, std::string content_hash, uint64_t max_bytes);
  // `xxh3` guards the chunk; DATA_LOSS on mismatch (fetch this chunk again),
  // INVALID_ARGUMENT when out of range.
  absl::Status AddChunk(uint64_t offset, std::string_view data,
                        std::string_view xxh3);
  // The next bytes in order, in pieces: copied once, guarded by `xxh3` over all
  // of them as above. From 8 MiB on, tensors are hashed beside the transfer.
  absl::Status Append(std::span<const std::string_view> pieces,
                      std::string_view xxh3);
  // The next bytes in order, from a transport without chunks: only Finish()
  // tells whether they are right.
  absl::Status Append(std::span<const std::byte> bytes);
  uint64_t bytes_received() const { return received_; }
  uint64_t total_bytes() const { return manifest_.arena_bytes; }
  bool complete() const { return received_ == manifest_.arena_bytes; }
  // Verifies each tensor's SHA-256. DATA_LOSS names the tensor that differs;
  // nothing of a version that failed here can be reached by an engine, and all
  // chunks have to be fetched again. FAILED_PRECONDITION when chunks are
  // missing or after an OK.
  absl::StatusOr<std::shared_ptr<const Snapshot>> Finish();

 private:
  SnapshotAssembler() = default;
  absl::StatusOr<std::span<const std::byte>> CopyNext(
      std::span<const std::string_view> pieces);
  void Take(uint64_t bytes);
  void MarkReceived(uint64_t begin, uint64_t end);
  Manifest manifest_;
  std::string content_hash_;
  std::shared_ptr<Arena> arena_;
  std::map<uint64_t, uint64_t> ranges_;  // received, merged: begin -> end
  uint64_t received_ = 0;
  std::unique_ptr<PrefixHasher> hasher_;  // reads arena_ and manifest_
};

// Versions held by this process, by content hash. Thread-safe.
class SnapshotStore {
 public:
  void Put(std::shared_ptr<const Snapshot> snapshot);
  std::shared_ptr<const Snapshot> Get(std::string_view content_hash) const;
  // Drops all but the named ones.
  void Keep(const std::vector<std::string>& content_hashes);
  std::vector<std::string> Held() const;

 private:
  mutable Mutex mutex_;
  std::map<std::string, std::shared_ptr<const Snapshot>, std::less<>> snapshots_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_SNAPSHOT_H_
