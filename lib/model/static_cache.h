#ifndef COX_LIB_MODEL_STATIC_CACHE_H_
#define COX_LIB_MODEL_STATIC_CACHE_H_

// Keys and values of all slots as one tensor per layer, of the network's dtype
// and device, and the attention backends on them (static_generate.h). The
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
  // Zeros: [slots, kv_heads, positions, head_dim] for each layer.
  StaticCache(const AttentionShape& shape, const KvCache::Size& size,
              const at::TensorOptions& kind);
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
// ...
class StaticPrefill : public PackedAttention {
 public:
  StaticPrefill(const AttentionShape& shape,
                std::vector<int64_t> prompt_lengths, StaticCache* cache)
      : PackedAttention(shape, std::move(prompt_lengths), /*causal=*/true),
        cache_(cache) {}
  at::Tensor Self(const Input& input) override;

 private:
  StaticCache* cache_;
};

// Row r is the next token of slot r, at positions[r] (int64, on the device),
// which may be changed between steps but not replaced.
class StaticDecode : public AttentionBackend {
 public:
  // `kernels`: null = LibTorch's operators.
  StaticDecode(const AttentionShape& shape, StaticCache* cache,
               at::Tensor positions, const CoxGpuApi* kernels);
  at::Tensor Self(const Input& input) override;
  at::Tensor Cross(const Input& input) override;

 private:
  at::Tensor WithKernels(const Input& input);
  at::Tensor WithOperators(const Input& input);

  AttentionShape shape_;
  StaticCache* cache_;
  at::Tensor positions_;
  const CoxGpuApi* kernels_;
  at::Tensor slots_, heads_, columns_;  // indices that do not change
};

}  // namespace cox

#endif  // COX_LIB_MODEL_STATIC_CACHE_H_
