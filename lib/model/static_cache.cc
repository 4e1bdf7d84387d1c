#include "lib/model/static_cache.h"

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

StaticCache::StaticCache(const AttentionShape& shape, const KvCache::Size& size,
                         const at::TensorOptions& kind)
    : shape_(shape), size_(size) {
  for (int64_t i = 0; i < size.layers; ++i) {
    for (std::vector<at::Tensor>* all : {&keys_, &values_}) {
      all->push_back(at::zeros(
          {size.slots, shape.kv_heads, size.positions, shape.head_dim}, kind));
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

StaticDecode::StaticDecode(const AttentionShape& shape, StaticCache* cache,
                           at::Tensor positions, const CoxGpuApi* kernels)
    : shape_(shape),
      cache_(cache),
      positions_(std::move(positions)),
      kernels_(kernels) {
  const auto kind = positions_.options();
  slots_ = at::arange(cache->slots(), kind).view({-1, 1});
  heads_ = at::arange(shape.kv_heads, kind).view({1, -1});
  columns_ = at::arange(cache->positions(), kind).view({1, 1, 1, -1});
}

at::Tensor StaticDecode::Self(const Input& input) {
  return kernels_ != nullptr ? WithKernels(input) : WithOperators(input);
}

at::Tensor StaticDecode::WithKernels(const Input& input) {
  const int type =
      input.q.scalar_type() == at::kBFloat16 ? COX_GPU_BF16 : COX_GPU_F32;
  at::Tensor q = input.q.contiguous();
  const at::Tensor k = input.k.contiguous(), v = input.v.contiguous();
  CoxGpuRotaryCache write = {};
  write.type = type;
  write.rows = q.size(0);
  write.heads = 0;  // queries are rotated already
  write.kv_heads = shape_.kv_heads;
  write.head_dim = shape_.head_dim;
  write.capacity = cache_->positions();
  write.device_q = q.data_ptr();
  write.device_k = k.const_data_ptr();
  write.device_v = v.const_data_ptr();
  write.device_positions = positions_.const_data_ptr<int64_t>();
  write.device_keys = cache_->keys(input.layer).data_ptr();
  write.device_values = cache_->values(input.layer).data_ptr();
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
  void* stream = kernels_->current_stream();
  int error = kernels_->rotary_cache(&write, stream);
  if (error == 0) error = kernels_->attend(&attend, stream);
  TORCH_CHECK(error == 0, "GPU attention: ", kernels_->error_text(error));
  return out;
}

at::Tensor StaticDecode::WithOperators(const Input& input) {
  const int64_t rows = input.q.size(0);
  const std::vector<int64_t> kv = {rows, shape_.kv_heads, shape_.head_dim};
  at::Tensor& keys = cache_->keys(input.layer);
  at::Tensor& values = cache_->values(input.layer);
  const at::Tensor at = positions_.view({-1, 1});
  keys.index_put_({slots_, heads_, at}, input.k.view(kv));
  values.index_put_({slots_, heads_, at}, input.v.view(kv));
  const auto kind = input.q.options();
  AttentionMask mask;
  mask.bias = at::where(columns_.le(positions_.view({-1, 1, 1, 1})),
                        at::zeros({}, kind), at::full({}, kHidden, kind));
  Input heads = input;
  heads.q = input.q.view({rows, shape_.heads, 1, shape_.head_dim});
  heads.k = keys;
  heads.v = values;
  return ScaledAttention(shape_, heads, mask).reshape({rows, -1});
}

at::Tensor StaticDecode::Cross(const Input&) {
  COX_CHECK(false);  // encoder-decoders are refused before
}

}  // namespace cox
