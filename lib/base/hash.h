#ifndef COX_LIB_BASE_HASH_H_
#define COX_LIB_BASE_HASH_H_

// One rule for hashes: SHA-256 (OpenSSL) is the identity of whatever a ledger
// or manifest records; XXH3-128 only guards a chunk in transfer.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "lib/base/status.h"

namespace cox {

// Lower-case hex, 64 characters.
std::string Sha256Hex(std::span<const std::byte> data);
std::string Sha256Hex(std::string_view data);

// Hash of a file's bytes. NOT_FOUND or INTERNAL with the path.
absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path);

// Incremental SHA-256. Thread-compatible.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void Update(std::string_view data);
  void Update(std::span<const std::byte> data);
  std::string HexDigest();  // ends the computation

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// XXH3-128 as 16 bytes, big-endian canonical form.
std::string Xxh3_128(std::string_view data);

inline std::span<const std::byte> AsBytes(std::string_view s) {
  return std::as_bytes(std::span<const char>(s.data(), s.size()));
}

}  // namespace cox

#endif  // COX_LIB_BASE_HASH_H_
