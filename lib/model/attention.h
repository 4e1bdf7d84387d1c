#ifndef COX_LIB_MODEL_ATTENTION_H_
#define COX_LIB_MODEL_ATTENTION_H_

// Who attends to whom: the attention backends of training, scoring and prefill
// (cached decoding: generate.cc).

#include <cstdint>
#include <memory>
#include <vector>

#include "ATen/core/Tensor.h"
#include "lib/model/dropout.h"
#include "lib/model/network.h"

namespace cox {

struct AttentionShape {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  // Plain: matmul, mask, softmax, matmul. Fused: LibTorch's blocked kernel.
  // Same results up to rounding; the plain path is the readable reference.
  bool fused = true;
};
AttentionShape ShapeOf(const ModelConfig& config, bool fused);

// softmax(scale q k^T + bias) v. q [B, heads, Lq, D]; k, v [B, kv_heads, Lk,
// D]; query head j uses key head j / (heads / kv_heads). `bias` broadcasts to
// [B, heads, Lq, Lk] or is undefined; `causal` needs Lq = Lk and no bias.
struct AttentionMask {
  at::Tensor bias;
  bool causal = false;
  // Of the probabilities, after the softmax; the plain path computes then.
  const Dropout* dropout = nullptr;
  int64_t layer = 0;
  DropoutSite site = DropoutSite::kSelfProbabilities;
};
at::Tensor ScaledAttention(const AttentionShape& shape,
                           const AttentionBackend::Input& heads,
                           const AttentionMask& mask);

// Rows are a [B, L] grid in row-major order, or the real tokens of one. Without
// a key mask padding must be on the right: causal rows of real tokens then
// never see it.
struct GridOptions {
  int64_t batch = 0;
  int64_t length = 0;
  bool causal = true;
  at::Tensor key_mask;  // [B, L] bool, true = real; undefined: see above
  // Packed rows: only the real tokens are rows. Both undefined for a grid
  // without gaps. Grid slots of padding point at any row.
  at::Tensor row_of_slot;  // [B * L] int64
  at::Tensor slot_of_row;  // [N] int64
  // Encoder rows [B, M] for Cross().
  int64_t memory_length = 0;
  at::Tensor memory_mask;                  // [B, M] bool
  std::shared_ptr<const Dropout> dropout;  // null: none
};

class GridAttention : public AttentionBackend {
 public:
  GridAttention(const AttentionShape& shape, GridOptions options)
      : shape_(shape), options_(std::move(options)) {}
  at::Tensor Self(const Input& input) override;
  at::Tensor Cross(const Input& input) override;
  at::Tensor Drop(const at::Tensor& x, int64_t layer,
                  DropoutSite site) override;

 private:
  at::Tensor QueryHeads(const at::Tensor& rows) const;
  at::Tensor QueryRows(const at::Tensor& heads) const;
  // A large finite negative number where a key is hidden, so that a query
  // that sees no key gets a finite answer.
  at::Tensor KeyBias(const at::Tensor& key_mask, at::ScalarType dtype) const;

  AttentionShape shape_;
  GridOptions options_;
  at::Tensor self_bias_, cross_bias_;  // made at the first use
};

// Sequences of a packed batch, one after the other without padding; rows past
// the last one are filler and get zeros. Equal lengths should be neighbours:
// they share one kernel call. A sequence's result does not depend on the
// others.
class PackedAttention : public AttentionBackend {
 public:
  PackedAttention(const AttentionShape& shape, std::vector<int64_t> lengths,
                  bool causal)
      : shape_(shape), lengths_(std::move(lengths)), causal_(causal) {}
  at::Tensor Self(const Input& input) override;
  at::Tensor Cross(const Input& input) override;

 protected:
  const AttentionShape& shape() const { return shape_; }
  const std::vector<int64_t>& lengths() const { return lengths_; }

 private:
  AttentionShape shape_;
  std::vector<int64_t> lengths_;
  bool causal_;
};

}  // namespace cox

#endif  // COX_LIB_MODEL_ATTENTION_H_
