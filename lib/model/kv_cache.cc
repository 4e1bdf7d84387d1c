#include "lib/model/kv_cache.h"

#include <algorithm>
#include <map>
#include <utility>

#include "ATen/ops/zeros.h"
#include "ATen/ops/zeros_like.h"
#include "lib/base/status.h"

namespace cox {
namespace {

constexpr int64_t kPositionBlock = 64;  // of DecodeAttention's inner loop
constexpr int64_t kDimBlock = 16;

// [n, heads * D] → [1, heads, n, D].
at::Tensor OneSequence(const at::Tensor& rows, int64_t head_dim) {
  return rows.view({1, rows.size(0), rows.size(1) / head_dim, head_dim})
      .transpose(1, 2);
}

}  // namespace

KvCache::KvCache(const AttentionShape& shape, const Size& size) {
  shape_.kv_heads = shape.kv_heads;
  shape_.head_dim = shape.head_dim;
  shape_.capacity = RoundUp(size.positions, kPositionBlock);
  shape_.padded_dim = RoundUp(shape.head_dim, kDimBlock);
  for (int64_t i = 0; i < size.layers; ++i) {
    // Zeros, because the kernel reads past a slot's length.
    keys_.push_back(at::zeros(
        {size.slots, shape_.kv_heads, shape_.head_dim, shape_.capacity},
        at::kFloat));
    values_.push_back(at::zeros(
        {size.slots, shape_.kv_heads, shape_.capacity, shape_.padded_dim},
        at::kFloat));
  }
}

void KvCache::Fill(const Block& block, const at::Tensor& k,
                   const at::Tensor& v) {
  const size_t layer = static_cast<size_t>(block.layer);
  const std::vector<int64_t> split = {block.count, block.length,
                                      shape_.kv_heads, shape_.head_dim};
  keys_[layer]
      .narrow(0, block.first_slot, block.count)
      .narrow(3, 0, block.length)
      .copy_(k.view(split).permute({0, 2, 3, 1}));
  values_[layer]
      .narrow(0, block.first_slot, block.count)
      .narrow(2, 0, block.length)
      .narrow(3, 0, shape_.head_dim)
      .copy_(v.view(split).permute({0, 2, 1, 3}));
}

float* KvCache::keys(int64_t layer, int64_t slot) {
  at::Tensor& all = keys_[static_cast<size_t>(layer)];
  return all.data_ptr<float>() + slot * all.stride(0);
}

float* KvCache::values(int64_t layer, int64_t slot) {
  at::Tensor& all = values_[static_cast<size_t>(layer)];
  return all.data_ptr<float>() + slot * all.stride(0);
}

Memories FindMemories(const std::vector<std::vector<int32_t>>& instructions,
                      const std::vector<size_t>& order) {
  using Key = std::pair<size_t, std::vector<int32_t>>;
  std::map<Key, std::vector<size_t>> slots;
  for (size_t s = 0; s < order.size(); ++s) {
    const std::vector<int32_t>& ids = instructions[order[s]];
    slots[Key(ids.size(), ids)].push_back(s);
  }
  Memories memories;
  memories.of_slot.resize(order.size());
  for (const auto& [key, users] : slots) {
    for (size_t s : users) {
      memories.of_slot[s] = static_cast<int64_t>(memories.rows.size());
    }
    memories.lengths.push_back(static_cast<int64_t>(key.first));
    memories.rows.push_back(order[users.front()]);
  }
  return memories;
}

at::Tensor AttendToMemories(const AttentionShape& shape,
                            const std::vector<int64_t>& prompt_lengths,
                            const Memories& memories,
                            const AttentionBackend::Input& input) {
  std::vector<at::Tensor> keys, values;  // [1, heads, length, head_dim] each
  int64_t memory_row = 0;
  for (const int64_t length : memories.lengths) {
    keys.push_back(
        OneSequence(input.k.narrow(0, memory_row, length), shape.head_dim));
    values.push_back(
        OneSequence(input.v.narrow(0, memory_row, length), shape.head_dim));
    memory_row += length;
  }
  at::Tensor out = at::zeros_like(input.q, at::MemoryFormat::Contiguous);
  int64_t row = 0;
  for (size_t slot = 0; slot < prompt_lengths.size(); ++slot) {
    const int64_t length = prompt_lengths[slot];
    const size_t memory = static_cast<size_t>(memories.of_slot[slot]);
    AttentionBackend::Input heads = input;
    heads.q = OneSequence(input.q.narrow(0, row, length), shape.head_dim);
    heads.k = keys[memory];
    heads.v = values[memory];
    at::Tensor attended = ScaledAttention(shape, heads, AttentionMask());
    out.narrow(0, row, length)
        .copy_(attended.transpose(1, 2).reshape({length, -1}));
    row += length;
  }
  return out;
}

at::Tensor PrefillAttention::Self(const Input& input) {
  FillPacked(cache_, input.layer, lengths(), input.k, input.v);
  return PackedAttention::Self(input);
}

at::Tensor PrefillAttention::Cross(const Input& input) {
  COX_CHECK(cross_cache_ != nullptr);
  FillPacked(cross_cache_, input.layer, memories_->lengths, input.k, input.v);
  return AttendToMemories(shape(), lengths(), *memories_, input);
}

DecodeAttention::DecodeAttention(const AttentionShape& shape, KvCache* cache,
                                 KvCache* cross_cache)
    : shape_(shape), cache_(cache), cross_cache_(cross_cache) {
  int64_t capacity = cache->shape().capacity;
  if (cross_cache != nullptr) {
    capacity = std::max(capacity, cross_cache->shape().capacity);
  }
  scratch_.resize(static_cast<size_t>(capacity));
}

void DecodeAttention::Attend(const Input& input, KvCache& cache, int64_t slot,
                             DecodeAttentionArgs args) {
  args.heads = shape_.heads;
  args.scale = static_cast<float>(input.scale);
  args.scratch = scratch_.data();
  args.shape = cache.shape();
  args.keys = cache.keys(input.layer, slot);
  args.values = cache.values(input.layer, slot);
  AttendToCache(args);
}

at::Tensor DecodeAttention::Self(const Input& input) {
  const at::Tensor wide_q = input.q.to(at::kFloat);
  const at::Tensor wide_k = input.k.to(at::kFloat);
  const at::Tensor wide_v = input.v.to(at::kFloat);
  at::Tensor out = at::zeros_like(wide_q, at::MemoryFormat::Contiguous);
  const float* q = wide_q.const_data_ptr<float>();
  const float* k = wide_k.const_data_ptr<float>();
  const float* v = wide_v.const_data_ptr<float>();
  for (size_t r = 0; r < rows_.size(); ++r) {
    const Row& row = rows_[r];
    const int64_t i = static_cast<int64_t>(r);
    AppendToCache(cache_->shape(), row.position, k + i * wide_k.stride(0),
                  v + i * wide_v.stride(0), cache_->keys(input.layer, row.slot),
                  cache_->values(input.layer, row.slot));
    DecodeAttentionArgs args;
    args.length = row.position + 1;
    args.q = q + i * wide_q.stride(0);
    args.out = out.data_ptr<float>() + i * out.stride(0);
    Attend(input, *cache_, row.slot, args);
  }
  return out.to(input.q.scalar_type());
}

at::Tensor DecodeAttention::Cross(const Input& input) {
  COX_CHECK(cross_cache_ != nullptr);
  const at::Tensor wide_q = input.q.to(at::kFloat);
  at::Tensor out = at::zeros_like(wide_q, at::MemoryFormat::Contiguous);
  const float* q = wide_q.const_data_ptr<float>();
  for (size_t r = 0; r < rows_.size(); ++r) {
    const int64_t i = static_cast<int64_t>(r);
    DecodeAttentionArgs args;
    args.length = rows_[r].memory_length;
    args.q = q + i * wide_q.stride(0);
    args.out = out.data_ptr<float>() + i * out.stride(0);
    Attend(input, *cross_cache_, rows_[r].memory, args);
  }
  return out.to(input.q.scalar_type());
}

}  // namespace cox
