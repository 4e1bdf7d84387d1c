#ifndef COX_LIB_MODEL_NETWORK_H_
#define COX_LIB_MODEL_NETWORK_H_

// The networks of docs/algorithms.md §12 and §13 over plain tensors. All
// row-wise work (embedding, norms, projections, MLP, rotary positions) is here
// and sees N token rows [N, ...]; which rows attend to which is the business of
// an AttentionBackend. So training, scoring, prefill and cached decoding run
// the same arithmetic.
//
// Works in the dtype of its parameters, or in bfloat16: then the weights of the
// blocks are cast (with graph, so that gradients reach the parameters) or given
// as copies, and embeddings, norms and rotary positions are computed in the
// parameters' dtype and rounded.

#include <cstdint>
#include <vector>

#include "ATen/core/Tensor.h"
#include "lib/engine/model_config.h"
#include "lib/model/dropout.h"

namespace cox {

// One layer's attention over rows. q [N, heads * head_dim]; k, v
// [N, kv_heads * head_dim], positions encoded but for rotary ones of a backend
// that rotates. Returns q's shape.
class AttentionBackend {
 public:
  virtual ~AttentionBackend() = default;
  struct Input {
    int64_t layer = 0;
    double scale = 1.0;
    at::Tensor q, k, v;
    // Rotary positions [N, 1, head_dim] that are still to be applied to q and
    // k; undefined when Rotates() is false or the family has none.
    at::Tensor cos, sin;
  };
  virtual at::Tensor Self(const Input& input) = 0;
  // Whether Self() rotates q and k itself.
  virtual bool Rotates() const { return false; }
  // k, v come from encoder rows [M, ...], or are undefined when the backend
  // holds them from an earlier call.
  virtual at::Tensor Cross(const Input& input) = 0;
  // Dropout of rows x [N, width] at a place of the network; none by default.
  virtual at::Tensor Drop(const at::Tensor& x, int64_t /*layer*/,
                          DropoutSite /*site*/) {
    return x;
  }
};

struct TokenRows {
  at::Tensor ids;        // [N] int64
  at::Tensor positions;  // [N] int64
};

struct NetworkOptions {
  bool bf16 = false;
  // Layers of the decoder keep their inputs only for the backward pass
  // (recompute.h). The network and the attention backend must then live until
  // it is over.
  bool recompute = false;
};

class Network {
 public:
  // `parameters` in ParameterShapes() order. The tensors are kept, so a leaf
  // that requires grad collects gradients. `copies`: empty, or the parameters
  // rounded to bfloat16, which the blocks then use instead of casting.
  Network(const ModelConfig& config, std::vector<at::Tensor> parameters,
          const NetworkOptions& options = NetworkOptions(),
          std::vector<at::Tensor> copies = {});

  // Other weights of the same configuration, into the tensors that are held:
  // their addresses stay.
  void Assign(const std::vector<at::Tensor>& parameters);

  // Rows may come from the host; results are on the parameters' device.
  // Encoder states [M, hidden] (final norm applied). Encoder-decoder only.
  at::Tensor Encode(const TokenRows& rows, AttentionBackend& attention) const;
  // Final-normed states [N, hidden] of the decoder. `memory`: encoder states,
  // undefined without encoder or when `attention` holds their keys already.
  at::Tensor Decode(const TokenRows& rows, const at::Tensor& memory,
                    AttentionBackend& attention) const;

  // [vocab, hidden] or, for a scalar head, [1, hidden].
  const at::Tensor& head_weight() const { return head_weight_; }
  // [vocab] or [1]; undefined without bias.
  const at::Tensor& head_bias() const { return head_bias_; }
  const ModelConfig& config() const { return config_; }
  at::Device device() const { return tokens_.device(); }

 private:
  struct Linear {
    at::Tensor weight, bias;
    bool input_major = false;  // GPT-2's Conv1D: [in, out]
  };
  struct Norm {
    at::Tensor weight, bias;  // no bias: RMSNorm
  };
  struct AttentionWeights {
    Linear qkv;  // GPT-2's fused projection, else q, k, v
    Linear q, k, v, o;
    at::Tensor q_norm, k_norm;  // Qwen3
  };
  struct Block {
    Norm norm1, norm_cross, norm2;
    AttentionWeights self, cross;
    Linear up, gate, down;  // gate: SwiGLU only
  };
  struct Rotary {
    at::Tensor cos, sin;  // [N, 1, head_dim]; undefined: none
  };
  class Cursor;

  void BuildGpt2(Cursor& next);
  void BuildLlamaFamily(Cursor& next);
  std::vector<Block> BuildEncdecStack(Cursor& next, bool decoder, Norm& last);

  at::Tensor Apply(const Linear& linear, const at::Tensor& x) const;
  at::Tensor Apply(const Norm& norm, const at::Tensor& x) const;
  // Layer's feed-forward part of x, before the residual sum.
  at::Tensor Mlp(const Block& block, const at::Tensor& x, int64_t layer,
                 AttentionBackend& attention) const;
  // Where the family drops rows; else x.
  at::Tensor Drop(const at::Tensor& x, int64_t layer, DropoutSite site,
                  AttentionBackend& attention) const;
  TokenRows OnDevice(const TokenRows& rows) const;
  Rotary MakeRotary(const at::Tensor& positions) const;
  at::Tensor HeadNorm(const at::Tensor& weight, const at::Tensor& x) const;
  // What a layer of the decoder reads. `memory_k` and `memory_v` are the
  // encoder states: twice, for two gradients.
  struct LayerInput {
    at::Tensor x, memory_k, memory_v;
    Rotary rotary;
  };
  at::Tensor DecoderLayer(int64_t layer, const LayerInput& input,
                          AttentionBackend& attention) const;
  at::Tensor SelfAttention(const AttentionWeights& w, const at::Tensor& x,
                           int64_t layer, const Rotary& rotary,
                           AttentionBackend& attention) const;

  ModelConfig config_;
  NetworkOptions options_;
  std::vector<at::Tensor> held_;  // what is computed with, in layout order
  at::Tensor tokens_;             // [vocab, hidden]
  at::Tensor positions_;          // learned positions, or undefined
  at::Tensor encoder_positions_;
  std::vector<Block> encoder_;
  std::vector<Block> blocks_;
  Norm encoder_norm_, norm_;
  at::Tensor head_weight_, head_bias_;
  at::Tensor rotary_frequencies_;  // [head_dim / 2] float64
};

}  // namespace cox

#endif  // COX_LIB_MODEL_NETWORK_H_
