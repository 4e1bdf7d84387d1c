#ifndef COX_LIB_MODEL_KV_CACHE_H_
#define COX_LIB_MODEL_KV_CACHE_H_

// Keys and values of growing sequences, and the attention backends that fill
// and read them. Float32, also for bfloat16 rows. A slot's result depends on
// that slot alone: prefill works on unpadded sequences, decoding on each slot's
// own length.

#include <cstdint>
#include <vector>

#include "ATen/core/Tensor.h"
#include "lib/model/attention.h"
#include "lib/model/kernels.h"

namespace cox {

// Per layer: keys [slots, kv_heads, head_dim, capacity], values [slots,
// kv_heads, capacity, padded_dim].
class KvCache {
 public:
  struct Size {
    int64_t layers = 0;
    int64_t slots = 0;
    int64_t positions = 0;  // per slot
  };
  KvCache(const AttentionShape& shape, const Size& size);

  // Writes positions 0 .. length - 1 of `count` neighbouring slots. k, v
  // [count * length, kv_heads * head_dim].
  struct Block {
    int64_t layer = 0;
    int64_t first_slot = 0;
    int64_t count = 0;
    int64_t length = 0;
  };
  void Fill(const Block& block, const at::Tensor& k, const at::Tensor& v);
  float* keys(int64_t layer, int64_t slot);
  float* values(int64_t layer, int64_t slot);
  const CacheShape& shape() const { return shape_; }

 private:
  CacheShape shape_;
  std::vector<at::Tensor> keys_, values_;
};

// Fills slots 0, 1, ... of `cache`, which has KvCache's Fill, with packed
// sequences: neighbours of one length at once. k, v [sum of lengths, kv_heads *
// head_dim].
template <typename Cache>
void FillPacked(Cache* cache, int64_t layer,
                const std::vector<int64_t>& lengths, const at::Tensor& k,
                const at::Tensor& v) {
  int64_t row = 0;
  for (size_t first = 0; first < lengths.size();) {
    KvCache::Block block;
    block.layer = layer;
    block.first_slot = static_cast<int64_t>(first);
    block.length = lengths[first];
    while (first < lengths.size() && lengths[first] == block.length) {
      ++first;
      ++block.count;
    }
    const int64_t rows = block.count * block.length;
    cache->Fill(block, k.narrow(0, row, rows), v.narrow(0, row, rows));
    row += rows;
  }
}

// What the slots of an encoder-decoder attend to. Slots with equal
// instructions share a memory: it is encoded and projected once.
struct Memories {
  std::vector<int64_t> lengths;  // rows of each, packed in this order
  std::vector<int64_t> of_slot;  // index into `lengths`
  std::vector<size_t> rows;      // a request row with each one's instruction
};
// Of a request whose row order[s] is in slot s. Shortest first, so that equal
// lengths are neighbours.
Memories FindMemories(const std::vector<std::vector<int32_t>>& instructions,
                      const std::vector<size_t>& order);
// Prompts, packed by slot, attend to their memories. `input`: q of the prompts,
// k and v of the memories.
at::Tensor AttendToMemories(const AttentionShape& shape,
                            const std::vector<int64_t>& prompt_lengths,
                            const Memories& memories,
                            const AttentionBackend::Input& input);

// Causal attention of the packed prompts; leaves their keys and values in
// slots 0, 1, ... For encoder-decoders also the cross keys and values, one
// slot of `cache` per memory.
class PrefillAttention : public PackedAttention {
 public:
  PrefillAttention(const AttentionShape& attention_shape,
                   std::vector<int64_t> prompt_lengths, KvCache* cache)
      : PackedAttention(attention_shape, std::move(prompt_lengths),
                        /*causal=*/true),
        cache_(cache) {}
  void AttendAcross(const Memories* memories, KvCache* cache) {
    memories_ = memories;
    cross_cache_ = cache;
  }
  at::Tensor Self(const Input& input) override;
  at::Tensor Cross(const Input& input) override;

 private:
  KvCache* cache_;
  const Memories* memories_ = nullptr;
  KvCache* cross_cache_ = nullptr;
};

// One new token per active slot; rows past them are filler and get zeros.
class DecodeAttention : public AttentionBackend {
 public:
  struct Row {
    int64_t slot = 0;
    int64_t position = 0;       // of the new token
    int64_t memory = 0;         // encoder-decoder only: slot of the
    int64_t memory_length = 0;  // cross cache, and its rows
  };
  DecodeAttention(const AttentionShape& shape, KvCache* cache,
                  KvCache* cross_cache);
  void SetRows(std::vector<Row> rows) { rows_ = std::move(rows); }
  at::Tensor Self(const Input& input) override;
  at::Tensor Cross(const Input& input) override;

 private:
  void Attend(const Input& input, KvCache& cache, int64_t slot,
              DecodeAttentionArgs args);

  AttentionShape shape_;
  KvCache* cache_;
  KvCache* cross_cache_;
  std::vector<Row> rows_;
  std::vector<float> scratch_;
};

}  // namespace cox

#endif  // COX_LIB_MODEL_KV_CACHE_H_
