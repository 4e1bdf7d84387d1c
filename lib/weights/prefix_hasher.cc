#include "lib/weights/prefix_hasher.h"

#include <algorithm>

#include "lib/base/hash.h"
#include "lib/base/status.h"

namespace cox {

PrefixHasher::PrefixHasher(const Manifest& manifest,
                           std::span<const std::byte> arena)
    : manifest_(manifest), arena_(arena) {}

PrefixHasher::~PrefixHasher() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    advanced_.NotifyOne();
  }
  thread_.Join();
}

void PrefixHasher::Advance(uint64_t end) {
  {
    MutexLock lock(&mutex_);
    end_ = std::max(end_, end);
    advanced_.NotifyOne();
  }
  if (!started_) {
    started_ = true;
    thread_ = Thread("hash", [this] { Work(); });
  }
}

std::vector<std::string> PrefixHasher::Finish() {
  if (!started_) Advance(arena_.size());
  thread_.Join();
  COX_CHECK(hashes_.size() == manifest_.tensors.size());
  return std::move(hashes_);
}

void PrefixHasher::Work() {
  for (const TensorInfo& tensor : manifest_.tensors) {
    Sha256 sha;
    const uint64_t tensor_end = tensor.offset + tensor.bytes;
    uint64_t done = tensor.offset;
    while (done < tensor_end) {
      uint64_t ready = 0;
      {
        MutexLock lock(&mutex_);
        // Whoever fills the arena has the deadline; this thread is told to
        // stop when it gives up.
        while (!advanced_.WaitFor(mutex_, absl::Seconds(60),
                                  [&] { return Reached(done); })) {
        }
        if (stop_) return;
        ready = std::min(end_, tensor_end);
      }
      sha.Update(arena_.subspan(static_cast<size_t>(done),
                                static_cast<size_t>(ready - done)));
      done = ready;
    }
    hashes_.push_back(sha.HexDigest());
  }
}

}  // namespace cox
