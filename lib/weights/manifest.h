#ifndef COX_LIB_WEIGHTS_MANIFEST_H_
#define COX_LIB_WEIGHTS_MANIFEST_H_

// What one version of a model consists of. The canonical text of a manifest is
// hashed to the version's identity, so equal hashes mean equal bits of every
// tensor, equal names, shapes, dtypes and architecture.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/base/status.h"

namespace cox {

// The integer types occur in model folders only (masks, position buffers); a
// layout of parameters has none of them.
enum class DType { kF32, kBF16, kF16, kF64, kI64, kI32, kI16, kI8, kU8, kBool };
int64_t DTypeBytes(DType dtype);
std::string_view DTypeName(DType dtype);  // safetensors' names: "F32", ...
absl::StatusOr<DType> ParseDType(std::string_view name);

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // row-major
  uint64_t offset = 0;         // in the arena, a multiple of 64
  uint64_t bytes = 0;          // product(shape) * DTypeBytes(dtype)
  std::string sha256;  // of the tensor's bytes, hex; "" = not hashed yet
};

struct Manifest {
  std::string model;                // "policy", "critic", "reward"
  std::string config_json;          // the model's config.json, as text
  std::vector<TensorInfo> tensors;  // arena order
  uint64_t arena_bytes = 0;         // end of the last tensor, rounded up to 64

  // Deterministic JSON text of everything above (sorted keys, no spaces).
  std::string CanonicalText() const;
  // SHA-256 of CanonicalText(). REQUIRES every tensor hashed.
  std::string ContentHash() const;
  // DATA_LOSS when `text` is not byte for byte the canonical text of a manifest
  // that passes Validate(). The caller bounds the size of `text`.
  static absl::StatusOr<Manifest> FromCanonicalText(std::string_view text);
  // Offsets aligned, ascending, not overlapping, sizes equal to the shapes
  // (checked multiplication), names unique, at most 2^20 tensors, rank <= 8.
  // INVALID_ARGUMENT names the tensor.
  absl::Status Validate() const;
};

// product(shape) * DTypeBytes(dtype) with checked multiplication.
// INVALID_ARGUMENT on a negative dimension or overflow.
absl::StatusOr<uint64_t> TensorBytes(DType dtype,
                                     const std::vector<int64_t>& shape);

// Lays tensors out in the given order, each at the next multiple of 64. A shape
// whose size overflows gets 0 bytes, which Validate() then rejects.
Manifest LayOut(
    std::string model, std::string config_json, DType dtype,
    const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors);

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_MANIFEST_H_
