#include "lib/model/static_cache.h"

#include <algorithm>

#include "ATen/ops/arange.h"
#include "ATen/ops/empty_like.h"
#include "ATen/ops/full.h"
#include "ATen/ops/where.h"
#include "ATen/ops/zeros.h"
#include "lib/base/status.h"

namespace cox {
namespace {

constexpr double kHidden = -1e30;

}  // namespace

int64_t StaticCache::Elements(const AttentionShape& shape,
                              const KvCache::Size& size) {
  return 2 * size.layers * size.slots * shape.kv_heads * size.positions *
         shape.head_dim;
}

StaticCache::StaticCache(const AttentionShape& shape, const KvCache::Size& size,
                         const at::Tensor& storage)
    : shape_(shape), size_(size) {
  const std::vector<int64_t> sizes = {size.slots, shape.kv_heads,
                                      size.positions, shape.head_dim};
  const int64_t elements =
      size.slots * shape.kv_heads * size.positions * shape.head_dim;
  int64_t at = 0;
  for (int64_t i = 0; i < size.layers; ++i) {
    for (std::vector<at::Tensor>* all : {&keys_, &values_}) {
      all->push_back(storage.narrow(0, at, elements).view(sizes));
      at += elements;
    }
  }
}

void StaticCache::Fill(const KvCache::Block& block, const at::Tensor& k,
                       const at::Tensor& v) {
  const auto write = [&](at::Tensor& cache, const at::Tensor& rows) {
    cache.narrow(0, block.first_slot, block.count)
        .narrow(2, 0, block.length)
        .copy_(rows.view({block.count, block.length, shape_.kv_heads,
                          shape_.head_dim})
                   .transpose(1, 2));
  };
  write(keys(block.layer), k);
  write(values(block.layer), v);
}

at::Tensor StaticPrefill::Self(const Input& input) {
  FillPacked(cache_, input.layer, lengths(), input.k, input.v);
  return PackedAttention::Self(input);
}

at::Tensor StaticPrefill::Cross(const Input& input) {
  COX_CHECK(cross_ != nullptr);
  std::vector<int64_t> first = {0};  // packed row of each memory
  for (const int64_t length : memories_->lengths) {
    first.push_back(first.back() + length);
  }
  for (size_t slot = 0; slot < memories_->of_slot.size(); ++slot) {
    const size_t memory = static_cast<size_t>(memories_->of_slot[slot]);
    const KvCache::Block block = {.layer = input.layer,
                                  .first_slot = static_cast<int64_t>(slot),
                                  .count = 1,
                                  .length = memories_->lengths[memory]};
    cross_->Fill(block, input.k.narrow(0, first[memory], block.length),
                 input.v.narrow(0, first[memory], block.length));
  }
  return AttendToMemories(shape(), lengths(), *memories_, input);
}

StaticDecode::StaticDecode(const AttentionShape& shape, Parts parts)
    : shape_(shape), parts_(std::move(parts)) {
  const auto kind = parts_.positions.options();
  slots_ = at::arange(parts_.cache->slots(), kind).view({-1, 1});
  heads_ = at::arange(shape.kv_heads, kind).view({1, -1});
  int64_t columns = parts_.cache->positions();
  if (parts_.cross != nullptr) {
    columns = std::max(columns, parts_.cross->positions());
  }
  columns_ = at::arange(columns, kind);
}

at::Tensor StaticDecode::Self(const Input& input) {
  return parts_.kernels != nullptr ? WithKernels(input) : WithOperators(input);
}

at::Tensor StaticDecode::Cross(const Input& input) {
  COX_CHECK(parts_.cross != nullptr);
  return Attend(input, *parts_.cross, parts_.memory_lengths);
}

at::Tensor StaticDecode::WithKernels(const Input& input) {
  StaticCache& cache = *parts_.cache;
  const CoxGpuApi& kernels = *parts_.kernels;
  const int type =
      input.q.scalar_type() == at::kBFloat16 ? COX_GPU_BF16 : COX_GPU_F32;
  at::Tensor q = input.q.contiguous();
  const at::Tensor k = input.k.contiguous(), v = input.v.contiguous();
  CoxGpuRotaryCache write = {};
  write.type = type;
  write.rows = q.size(0);
  write.heads = shape_.heads;
  write.kv_heads = shape_.kv_heads;
  write.head_dim = shape_.head_dim;
  write.capacity = cache.positions();
  write.device_q = q.data_ptr();
  write.device_k = k.const_data_ptr();
  write.device_v = v.const_data_ptr();
  at::Tensor cos, sin;
  if (input.cos.defined()) {
    cos = input.cos.contiguous();
    sin = input.sin.contiguous();
    write.device_cos = cos.const_data_ptr<float>();
    write.device_sin = sin.const_data_ptr<float>();
  }
  write.device_positions = parts_.positions.const_data_ptr<int64_t>();
  write.device_keys = cache.keys(input.layer).data_ptr();
  write.device_values = cache.values(input.layer).data_ptr();
  at::Tensor out = at::empty_like(q);
  CoxGpuAttend attend = {};
  attend.type = type;
  attend.rows = write.rows;
  attend.heads = shape_.heads;
  attend.kv_heads = write.kv_heads;
  attend.head_dim = write.head_dim;
  attend.capacity = write.capacity;
  attend.device_q = write.device_q;
  attend.device_keys = write.device_keys;
  attend.device_values = write.device_values;
  attend.device_positions = write.device_positions;
  attend.scale = static_cast<float>(input.scale);
  attend.device_out = out.data_ptr();
  void* stream = kernels.current_stream();
  int error = kernels.rotary_cache(&write, stream);
  if (error == 0) error = kernels.attend(&attend, stream);
  TORCH_CHECK(error == 0, "GPU attention: ", kernels.error_text(error));
  return out;
}

at::Tensor StaticDecode::WithOperators(const Input& input) {
  const std::vector<int64_t> kv = {input.q.size(0), shape_.kv_heads,
                                   shape_.head_dim};
  StaticCache& cache = *parts_.cache;
  const at::Tensor at = parts_.positions.view({-1, 1});
  cache.keys(input.layer).index_put_({slots_, heads_, at}, input.k.view(kv));
  cache.values(input.layer).index_put_({slots_, heads_, at}, input.v.view(kv));
  return Attend(input, cache, parts_.positions.add(1));
}

at::Tensor StaticDecode::Attend(const Input& input, StaticCache& cache,
                                const at::Tensor& lengths) {
  const int64_t rows = input.q.size(0);
  const auto kind = input.q.options();
  const at::Tensor visible =
      columns_.narrow(0, 0, cache.positions()).lt(lengths.view({-1, 1, 1, 1}));
  AttentionMask mask;
  mask.bias =
      at::where(visible, at::zeros({}, kind), at::full({}, kHidden, kind));
  Input heads = input;
  heads.q = input.q.view({rows, shape_.heads, 1, shape_.head_dim});
  heads.k = cache.keys(input.layer);
  heads.v = cache.values(input.layer);
  return ScaledAttention(shape_, heads, mask).reshape({rows, -1});
}

}  // namespace cox
