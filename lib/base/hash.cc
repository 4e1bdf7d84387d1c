#include "lib/base/hash.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>

namespace cox {
namespace {

std::string ToHex(std::span<const unsigned char> digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(digest.size() * 2);
  for (const unsigned char byte : digest) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

}  // namespace

struct Sha256::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~Impl() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) {
  COX_CHECK(impl_->context != nullptr);
  COX_CHECK(EVP_DigestInit_ex(impl_->context, EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() = default;

void Sha256::Update(std::string_view data) { Update(AsBytes(data)); }

void Sha256::Update(std::span<const std::byte> data) {
  COX_CHECK(EVP_DigestUpdate(impl_->context, data.data(), data.size()) == 1);
}

std::string Sha256::HexDigest() {
  std::array<unsigned char, 32> digest;
  unsigned int length = 0;
  COX_CHECK(EVP_DigestFinal_ex(impl_->context, digest.data(), &length) == 1);
  COX_CHECK(length == digest.size());
  return ToHex(digest);
}

std::string Sha256Hex(std::span<const std::byte> data) {
  Sha256 sha;
  sha.Update(data);
  return sha.HexDigest();
}

std::string Sha256Hex(std::string_view data) {
  return Sha256Hex(AsBytes(data));
}

absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string message =
        absl::StrCat("open ", path, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message)
                           : absl::InternalError(message);
  }
  Sha256 sha;
  std::string buffer(size_t{1} << 20, '\0');
  for (;;) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n > 0) {
      sha.Update(std::string_view(buffer.data(), static_cast<size_t>(n)));
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    const int error = errno;
    close(fd);
    if (n == 0) return sha.HexDigest();
    return absl::InternalError(
        absl::StrCat("read ", path, ": ", std::strerror(error)));
  }
}

std::string Xxh3_128(std::string_view data) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(data.data(), data.size()));
  return std::string(reinterpret_cast<const char*>(canonical.digest),
                     sizeof(canonical.digest));
}

}  // namespace cox
