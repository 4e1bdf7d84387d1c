#ifndef COX_LIB_MODEL_STATIC_CACHE_H_
#define COX_LIB_MODEL_STATIC_CACHE_H_

// Keys and values of all slots as one tensor per layer, of the network's dtype
// and device, and the attention backends on them (decode_pool.h). The
// layout is that of CacheView (lib/gpu/kernel_math.h).

#include <cstdint>
#include <vector>

#include "ATen/core/Tensor.h"
#include "lib/gpu/api.h"
#include "lib/model/attention.h"
#include "lib/model/kv_cache.h"

namespace cox {

class StaticCache {
 public:
  // Elements of the storage that a cache of this size needs.
  static int64_t Elements(const AttentionShape& shape,
                          const KvCache::Size& size);
  // Views into the front of `storage` (flat, finite):
  // [slots, kv_heads, positions, head_dim] for each layer.
  StaticCache(const AttentionShape& shape, const KvCache::Size& size,
              const at::Tensor& storage);
  void Fill(const KvCache::Block& block, const at::Tensor& k,
            const at::Tensor& v);
  at::Tensor& keys(int64_t layer) { return keys_[static_cast<size_t>(layer)]; }
  at::Tensor& values(int64_t layer) {
    return values_[static_cast<size_t>(layer)];
  }
  int64_t slots() const { return size_.slots; }
  int64_t positions() const { return size_.positions; }

 private:
  AttentionShape shape_;
  KvCache::Size size_;
  std::vector<at::Tensor> keys_, values_;
};

// Causal attention of the packed prompts; leaves keys and values in slots 0, 1,
// ... For encoder-decoders also those of each slot's memory in `cross`.
class StaticPrefill : public PackedAttention {
 public:
  // `memories` and `cross`: of an encoder-decoder only.
  StaticPrefill(const AttentionShape& shape,
                std::vector<int64_t> prompt_lengths, StaticCache* cache,
                const Memories* memories, StaticCache* cross)
      : PackedAttention(shape, std::move(prompt_lengths), /*causal=*/true),
        cache_(cache),
        memories_(memories),
        cross_(cross) {}
  at::Tensor Self(const Input& input) override;
  at::Tensor Cross(const Input& input) override;

 private:
  StaticCache* cache_;
  const Memories* memories_;
  StaticCache* cross_;
};

// Row r is the next token of slot r, at positions[r] (int64, on the device),
// which may be changed between steps but not replaced.
class StaticDecode : public AttentionBackend {
 public:
  struct Parts {
    StaticCache* cache = nullptr;
    at::Tensor positions;
    // Encoder-decoder only: slot r attends to memory_lengths[r] rows of
    // `cross`. As `positions`.
    StaticCache* cross = nullptr;
    at::Tensor memory_lengths;
    // Rotation, cache write and self-attention; null = LibTorch's operators.
    const CoxGpuApi* kernels = nullptr;
  };
  StaticDecode(const AttentionShape& shape, Parts parts);
  at::Tensor Self(const Input& input) override;
  bool Rotates() const override { return parts_.kernels != nullptr; }
  at::Tensor Cross(const Input& input) override;

 private:
  at::Tensor WithKernels(const Input& input);
  at::Tensor WithOperators(const Input& input);
  // One query per slot over the first lengths[slot] positions of `cache`.
  at::Tensor Attend(const Input& input, StaticCache& cache,
                    const at::Tensor& lengths);

  AttentionShape shape_;
  Parts parts_;
  at::Tensor slots_, heads_, columns_;  // indices that do not change
};

}  // namespace cox

#endif  // COX_LIB_MODEL_STATIC_CACHE_H_
