#include "lib/model/attention.h"

#include "ATen/ops/full.h"
#include "ATen/ops/matmul.h"
#include "ATen/ops/ones.h"
#include "ATen/ops/scaled_dot_product_attention.h"
#include "ATen/ops/softmax.h"
#include "ATen/ops/where.h"
#include "ATen/ops/zeros.h"
#include "ATen/ops/zeros_like.h"
#include "lib/base/status.h"

namespace cox {
namespace {

constexpr double kHidden = -1e30;

// [N, heads * D] rows of a grid → [B, heads, L, D], without a copy.
at::Tensor ToHeads(const at::Tensor& rows, int64_t batch, int64_t head_dim) {
  return rows
      .view({batch, rows.size(0) / batch, rows.size(1) / head_dim, head_dim})
      .transpose(1, 2);
}
at::Tensor FromHeads(const at::Tensor& heads) {
  return heads.transpose(1, 2).reshape(
      {heads.size(0) * heads.size(2), heads.size(1) * heads.size(3)});
}

// Each key head repeated for its group of query heads.
at::Tensor RepeatHeads(const at::Tensor& kv, int64_t heads) {
  const int64_t group = heads / kv.size(1);
  if (group == 1) return kv;
  return kv.unsqueeze(2)
      .expand({kv.size(0), kv.size(1), group, kv.size(2), kv.size(3)})
      .reshape({kv.size(0), heads, kv.size(2), kv.size(3)});
}

// On the device of `like`.
at::Tensor CausalMask(int64_t length, const at::Tensor& like) {
  return at::ones({length, length}, like.options().dtype(at::kBool)).tril();
}

at::Tensor BiasFrom(const at::Tensor& visible, at::ScalarType dtype) {
  const auto options = visible.options().dtype(dtype);
  return at::where(visible, at::zeros({}, options),
                   at::full({}, kHidden, options));
}

}  // namespace

AttentionShape ShapeOf(const ModelConfig& config, bool fused) {
  AttentionShape shape;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.fused = fused;
  return shape;
}

at::Tensor ScaledAttention(const AttentionShape& shape,
                           const AttentionBackend::Input& heads,
                           const AttentionMask& mask) {
  const at::Tensor k = RepeatHeads(heads.k, shape.heads);
  const at::Tensor v = RepeatHeads(heads.v, shape.heads);
  if (shape.fused && mask.dropout == nullptr) {
    std::optional<at::Tensor> bias;
    if (mask.bias.defined()) bias = mask.bias;
    return at::scaled_dot_product_attention(heads.q, k, v, bias,
                                            /*dropout_p=*/0.0, mask.causal,
                                            heads.scale);
  }
  at::Tensor scores = at::matmul(heads.q, k.transpose(-2, -1)).mul(heads.scale);
  if (mask.bias.defined()) scores = scores.add(mask.bias);
  if (mask.causal) {
    scores = scores.add(
        BiasFrom(CausalMask(heads.q.size(2), scores), scores.scalar_type()));
  }
  at::Tensor probabilities = at::softmax(scores, /*dim=*/-1);
  if (mask.dropout != nullptr) {
    probabilities = probabilities.mul(
        mask.dropout->Factors(probabilities, mask.layer, mask.site));
  }
  return at::matmul(probabilities, v);
}

at::Tensor GridAttention::KeyBias(const at::Tensor& key_mask,
                                  at::ScalarType dtype) const {
  at::Tensor visible = key_mask.view({key_mask.size(0), 1, 1, -1});
  return BiasFrom(visible, dtype);
}

// [N, heads * D] of decoder rows → [B, heads, L, D].
at::Tensor GridAttention::QueryHeads(const at::Tensor& rows) const {
  if (!options_.row_of_slot.defined()) {
    return ToHeads(rows, options_.batch, shape_.head_dim);
  }
  return ToHeads(rows.index_select(0, options_.row_of_slot), options_.batch,
                 shape_.head_dim);
}

at::Tensor GridAttention::QueryRows(const at::Tensor& heads) const {
  at::Tensor rows = FromHeads(heads);
  if (!options_.slot_of_row.defined()) return rows;
  return rows.index_select(0, options_.slot_of_row);
}

at::Tensor GridAttention::Drop(const at::Tensor& x, int64_t layer,
                               DropoutSite site) {
  if (options_.dropout == nullptr) return x;
  return options_.dropout->Apply(x, layer, site);
}

at::Tensor GridAttention::Self(const Input& input) {
  Input heads = input;
  heads.q = QueryHeads(input.q);
  heads.k = QueryHeads(input.k);
  heads.v = QueryHeads(input.v);
  AttentionMask mask;
  mask.dropout = options_.dropout.get();
  mask.layer = input.layer;
  if (!options_.key_mask.defined()) {
    mask.causal = options_.causal;
    return QueryRows(ScaledAttention(shape_, heads, mask));
  }
  if (!self_bias_.defined()) {
    at::Tensor visible =
        options_.key_mask.view({options_.batch, 1, 1, options_.length});
    if (options_.causal) {
      visible = visible.logical_and(CausalMask(options_.length, visible));
    } else {
      visible = visible.expand({-1, 1, options_.length, -1});
    }
    self_bias_ = BiasFrom(visible, input.q.scalar_type());
  }
  mask.bias = self_bias_;
  return QueryRows(ScaledAttention(shape_, heads, mask));
}

at::Tensor GridAttention::Cross(const Input& input) {
  Input heads = input;
  heads.q = QueryHeads(input.q);
  heads.k = ToHeads(input.k, options_.batch, shape_.head_dim);
  heads.v = ToHeads(input.v, options_.batch, shape_.head_dim);
  AttentionMask mask;
  mask.dropout = options_.dropout.get();
  mask.layer = input.layer;
  mask.site = DropoutSite::kCrossProbabilities;
  if (options_.memory_mask.defined()) {
    if (!cross_bias_.defined()) {
      cross_bias_ =
          KeyBias(options_.memory_mask, input.q.scalar_type())
              .expand({-1, 1, options_.length, options_.memory_length});
    }
    mask.bias = cross_bias_;
  }
  return QueryRows(ScaledAttention(shape_, heads, mask));
}

at::Tensor PackedAttention::Self(const Input& input) {
  at::Tensor out = at::zeros_like(input.q, at::MemoryFormat::Contiguous);
  AttentionMask mask;
  mask.causal = causal_;
  int64_t row = 0;
  for (size_t first = 0; first < lengths_.size();) {
    const int64_t length = lengths_[first];
    size_t end = first;
    while (end < lengths_.size() && lengths_[end] == length) ++end;
    const int64_t batch = static_cast<int64_t>(end - first);
    Input heads = input;
    heads.q =
        ToHeads(input.q.narrow(0, row, batch * length), batch, shape_.head_dim);
    heads.k =
        ToHeads(input.k.narrow(0, row, batch * length), batch, shape_.head_dim);
    heads.v =
        ToHeads(input.v.narrow(0, row, batch * length), batch, shape_.head_dim);
    out.narrow(0, row, batch * length)
        .copy_(FromHeads(ScaledAttention(shape_, heads, mask)));
    row += batch * length;
    first = end;
  }
  return out;
}

at::Tensor PackedAttention::Cross(const Input&) {
  COX_CHECK(false);  // only decoders attend across, with a backend of theirs
}

}  // namespace cox
