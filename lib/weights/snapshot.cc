#include "lib/weights/snapshot.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

#include "lib/base/hash.h"
#include "lib/base/thread.h"

namespace cox {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kParallelBytes = uint64_t{8} << 20;
constexpr unsigned kMaxHashThreads = 8;

// SHA-256 of every tensor's bytes, in manifest order.
std::vector<std::string> HashTensors(const Manifest& manifest,
                                     std::span<const std::byte> arena) {
  const std::vector<TensorInfo>& tensors = manifest.tensors;
  std::vector<std::string> hashes(tensors.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < tensors.size(); i = next++) {
      hashes[i] =
          Sha256Hex(arena.subspan(static_cast<size_t>(tensors[i].offset),
                                  static_cast<size_t>(tensors[i].bytes)));
    }
  };
  unsigned workers = 1;
  if (manifest.arena_bytes > kParallelBytes) {
    workers =
        std::clamp(std::thread::hardware_concurrency(), 1u, kMaxHashThreads);
  }
  std::vector<Thread> threads;
  for (unsigned i = 1; i < workers; ++i) threads.emplace_back("hash", work);
  work();
  threads.clear();  // joins
  return hashes;
}

absl::Status CheckTensors(const Manifest& manifest,
                          const std::string& content_hash,
                          const std::vector<std::string>& hashes) {
  for (size_t i = 0; i < hashes.size(); ++i) {
    const TensorInfo& tensor = manifest.tensors[i];
    if (hashes[i] != tensor.sha256) {
      return absl::DataLossError(absl::StrCat(
          "version ", content_hash, ": tensor '", tensor.name,
          "': expected sha256 ", tensor.sha256, ", found ", hashes[i]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

Arena::Arena(uint64_t bytes) : data_(nullptr), size_(bytes) {
  if (bytes == 0) return;
  const uint64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  COX_CHECK(rounded >= bytes);
  // Fresh pages are zero, and large ones cost fewer faults.
  void* memory =
      mmap(nullptr, static_cast<size_t>(rounded), PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  COX_CHECK(memory != MAP_FAILED);
  if (rounded >= kParallelBytes) {
    madvise(memory, static_cast<size_t>(rounded), MADV_HUGEPAGE);
  }
  data_ = static_cast<std::byte*>(memory);
}

Arena::~Arena() {
  if (data_ == nullptr) return;
  munmap(data_, static_cast<size_t>((size_ + kAlignment - 1) / kAlignment *
                                    kAlignment));
}

std::span<float> Arena::floats() {
  return {reinterpret_cast<float*>(data_),
          static_cast<size_t>(size_ / sizeof(float))};
}

std::span<const float> Arena::floats() const {
  return {reinterpret_cast<const float*>(data_),
          static_cast<size_t>(size_ / sizeof(float))};
}

absl::StatusOr<std::span<const std::byte>> Snapshot::Tensor(
    std::string_view name) const {
  for (const TensorInfo& tensor : manifest.tensors) {
    if (tensor.name != name) continue;
    return arena->bytes().subspan(static_cast<size_t>(tensor.offset),
                                  static_cast<size_t>(tensor.bytes));
  }
  return absl::NotFoundError(
      absl::StrCat("snapshot ", content_hash, ": no tensor '",
                   absl::string_view(name.data(), name.size()), "'"));
}

absl::StatusOr<std::shared_ptr<const Snapshot>> MakeSnapshot(
    Manifest layout, std::shared_ptr<const Arena> arena) {
  COX_RETURN_IF_ERROR(layout.Validate());
  if (arena->bytes().size() != layout.arena_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("snapshot: the layout has ", layout.arena_bytes,
                     " bytes, the arena ", arena->bytes().size()));
  }
  std::vector<std::string> hashes = HashTensors(layout, arena->bytes());
  for (size_t i = 0; i < hashes.size(); ++i) {
    layout.tensors[i].sha256 = std::move(hashes[i]);
  }
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->manifest = std::move(layout);
  snapshot->content_hash = snapshot->manifest.ContentHash();
  snapshot->arena = std::move(arena);
  return snapshot;
}

absl::Status VerifySnapshot(const Snapshot& snapshot) {
  return CheckTensors(snapshot.manifest, snapshot.content_hash,
                      HashTensors(snapshot.manifest, snapshot.arena->bytes()));
}

absl::StatusOr<std::shared_ptr<const Snapshot>> SnapshotFromFloats(
    const Manifest& layout, std::span<const float> parameters) {
  // Before the allocation: arena_bytes may be wrong by far.
  if (layout.arena_bytes != parameters.size_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("snapshot: the layout has ", layout.arena_bytes,
                     " bytes, the parameters ", parameters.size_bytes()));
  }
  auto arena = std::make_shared<Arena>(layout.arena_bytes);
  std::copy(parameters.begin(), parameters.end(), arena->floats().begin());
  return MakeSnapshot(layout, std::move(arena));
}

absl::StatusOr<std::unique_ptr<SnapshotAssembler>> SnapshotAssembler::Create(
    Manifest manifest, std::string content_hash, uint64_t max_bytes) {
  COX_RETURN_IF_ERROR(manifest.Validate());
  for (const TensorInfo& tensor : manifest.tensors) {
    if (tensor.sha256.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("manifest: tensor '", tensor.name, "' has no sha256"));
    }
  }
  if (manifest.arena_bytes > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: ", manifest.arena_bytes, " bytes, at most ",
                     max_bytes, " are allowed"));
  }
  const std::string found = manifest.ContentHash();
  if (found != content_hash) {
    return absl::InvalidArgumentError(absl::StrCat(
        "manifest: expected hash ", content_hash, ", found ", found));
  }
  std::unique_ptr<SnapshotAssembler> assembler(new SnapshotAssembler);
  assembler->arena_ = std::make_shared<Arena>(manifest.arena_bytes);
  assembler->manifest_ = std::move(manifest);
  assembler->content_hash_ = std::move(content_hash);
  return assembler;
}

absl::Status SnapshotAssembler::AddChunk(uint64_t offset, std::string_view data,
                                         std::string_view xxh3) {
  if (arena_ == nullptr) {
    return absl::FailedPreconditionError("chunk: the version is finished");
  }
  if (offset > manifest_.arena_bytes ||
      data.size() > manifest_.arena_bytes - offset) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk of ", data.size(), " bytes at ", offset,
                     ": beyond the version's ", manifest_.arena_bytes));
  }
  if (Xxh3_128(data) != xxh3) {
    return absl::DataLossError(absl::StrCat(
        "chunk of ", data.size(), " bytes at ", offset, ": checksum differs"));
  }
  if (data.empty()) return absl::OkStatus();
  hasher_ = nullptr;  // it may have read what is overwritten here
  std::memcpy(arena_->bytes().data() + offset, data.data(), data.size());
  MarkReceived(offset, offset + data.size());
  return absl::OkStatus();
}

// Copies what comes next; it counts as received after Take().
absl::StatusOr<std::span<const std::byte>> SnapshotAssembler::CopyNext(
    std::span<const std::string_view> pieces) {
  if (arena_ == nullptr) {
    return absl::FailedPreconditionError("chunk: the version is finished");
  }
  const uint64_t begin = received_;
  if (!ranges_.empty() && (ranges_.size() > 1 || ranges_.begin()->first != 0)) {
    return absl::FailedPreconditionError(
        "chunk: the version has gaps, so it has no next byte");
  }
  uint64_t end = begin;
  for (const std::string_view piece : pieces) {
    if (piece.size() > manifest_.arena_bytes - end) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk at ", begin, ": beyond the version's ",
                       manifest_.arena_bytes, " bytes"));
    }
    std::memcpy(arena_->bytes().data() + end, piece.data(), piece.size());
    end += piece.size();
  }
  return std::span<const std::byte>(arena_->bytes())
      .subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

void SnapshotAssembler::Take(uint64_t bytes) {
  if (bytes == 0) return;
  const uint64_t end = received_ + bytes;
  MarkReceived(received_, end);
  if (manifest_.arena_bytes > kParallelBytes) {
    if (hasher_ == nullptr) {
      hasher_ = std::make_unique<PrefixHasher>(manifest_, arena_->bytes());
    }
    hasher_->Advance(end);
  }
}

absl::Status SnapshotAssembler::Append(std::span<const std::string_view> pieces,
                                       std::string_view xxh3) {
  COX_ASSIGN_OR_RETURN(const std::span<const std::byte> bytes,
                       CopyNext(pieces));
  if (Xxh3_128({reinterpret_cast<const char*>(bytes.data()), bytes.size()}) !=
      xxh3) {
    return absl::DataLossError(absl::StrCat("chunk of ", bytes.size(),
                                            " bytes at ", received_,
                                            ": checksum differs"));
  }
  Take(bytes.size());
  return absl::OkStatus();
}

absl::Status SnapshotAssembler::Append(std::span<const std::byte> bytes) {
  const std::string_view piece(reinterpret_cast<const char*>(bytes.data()),
                               bytes.size());
  COX_RETURN_IF_ERROR(CopyNext({&piece, 1}).status());
  Take(bytes.size());
  return absl::OkStatus();
}

// Merges [begin, end) with every range that it touches.
void SnapshotAssembler::MarkReceived(uint64_t begin, uint64_t end) {
  auto it = ranges_.upper_bound(begin);
  if (it != ranges_.begin() && std::prev(it)->second >= begin) --it;
  while (it != ranges_.end() && it->first <= end) {
    begin = std::min(begin, it->first);
    end = std::max(end, it->second);
    received_ -= it->second - it->first;
    it = ranges_.erase(it);
  }
  ranges_.emplace(begin, end);
  received_ += end - begin;
}

absl::StatusOr<std::shared_ptr<const Snapshot>> SnapshotAssembler::Finish() {
  if (arena_ == nullptr) {
    return absl::FailedPreconditionError("version is finished already");
  }
  if (!complete()) {
    return absl::FailedPreconditionError(
        absl::StrCat("version ", content_hash_, ": ", received_, " of ",
                     manifest_.arena_bytes, " bytes received"));
  }
  const std::vector<std::string> hashes =
      hasher_ != nullptr ? hasher_->Finish()
                         : HashTensors(manifest_, arena_->bytes());
  hasher_ = nullptr;
  const absl::Status checked = CheckTensors(manifest_, content_hash_, hashes);
  if (!checked.ok()) {
    ranges_.clear();
    received_ = 0;
    return checked;
  }
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->manifest = manifest_;
  snapshot->content_hash = content_hash_;
  snapshot->arena = std::exchange(arena_, nullptr);
  return snapshot;
}

void SnapshotStore::Put(std::shared_ptr<const Snapshot> snapshot) {
  MutexLock lock(&mutex_);
  snapshots_.insert_or_assign(snapshot->content_hash, snapshot);
}

std::shared_ptr<const Snapshot> SnapshotStore::Get(
    std::string_view content_hash) const {
  MutexLock lock(&mutex_);
  const auto it = snapshots_.find(content_hash);
  return it == snapshots_.end() ? nullptr : it->second;
}

void SnapshotStore::Keep(const std::vector<std::string>& content_hashes) {
  // Freed after unlocking: dropping a version returns gigabytes.
  std::vector<std::shared_ptr<const Snapshot>> dropped;
  MutexLock lock(&mutex_);
  for (auto it = snapshots_.begin(); it != snapshots_.end();) {
    if (std::find(content_hashes.begin(), content_hashes.end(), it->first) !=
        content_hashes.end()) {
      ++it;
      continue;
    }
    dropped.push_back(std::move(it->second));
    it = snapshots_.erase(it);
  }
}

std::vector<std::string> SnapshotStore::Held() const {
  MutexLock lock(&mutex_);
  std::vector<std::string> hashes;
  for (const auto& [hash, snapshot] : snapshots_) hashes.push_back(hash);
  return hashes;
}

}  // namespace cox
