#include "lib/model/network.h"

#include <cmath>

#include "ATen/ops/cat.h"
#include "ATen/ops/embedding.h"
#include "ATen/ops/layer_norm.h"
#include "ATen/ops/silu.h"
#include "ATen/ops/split.h"
#include "ATen/ops/tensor.h"
#include "c10/core/GradMode.h"
#include "lib/base/status.h"
#include "lib/model/layers.h"
#include "lib/model/linear.h"
#include "lib/model/master_copy.h"
#include "lib/model/recompute.h"
#include "lib/model/rotary.h"

namespace cox {
// Hands out the parameters in layout order.
class Network::Cursor {
 public:
  Cursor(std::vector<at::Tensor> parameters, std::vector<at::Tensor> copies,
         bool bf16)
      : held_(std::move(parameters)), copies_(std::move(copies)), bf16_(bf16) {}
  at::Tensor Tensor() { return held_.at(at_++); }
  Network::Linear Head(bool bias) {
    Network::Linear linear;
    linear.weight = Tensor();
    if (bias) linear.bias = Tensor();
    return linear;
  }
  Network::Linear Linear(bool bias) {
    Network::Linear linear;
    linear.weight = Rounded();
    if (bias) linear.bias = Rounded();
    return linear;
  }
  Network::Linear Conv1d() {
    Network::Linear linear = Linear(/*bias=*/true);
    linear.input_major = true;
    return linear;
  }
  Network::Norm LayerNorm() {
    Network::Norm norm;
    norm.weight = Tensor();
    norm.bias = Tensor();
    return norm;
  }
  bool done() const { return at_ == held_.size(); }
  std::vector<at::Tensor> TakeHeld() { return std::move(held_); }

 private:
  at::Tensor Rounded() {
    at::Tensor& held = held_.at(at_);
    if (bf16_) {
      held = copies_.empty() ? held.to(at::kBFloat16)
                             : StandFor(held, copies_.at(at_));
    }
    return Tensor();
  }

  std::vector<at::Tensor> held_, copies_;
  bool bf16_;
  size_t at_ = 0;
};

Network::Network(const ModelConfig& config, std::vector<at::Tensor> parameters,
                 const NetworkOptions& options, std::vector<at::Tensor> copies)
    : config_(config), options_(options) {
  Cursor next(std::move(parameters), std::move(copies), options.bf16);
  const bool encdec = config.family == ModelFamily::kInstructEncdec;
  tokens_ = next.Tensor();
  if (config.family == ModelFamily::kGpt2) {
    BuildGpt2(next);
  } else if (encdec) {
    encoder_positions_ = next.Tensor();
    positions_ = next.Tensor();
    encoder_ = BuildEncdecStack(next, /*decoder=*/false, encoder_norm_);
    blocks_ = BuildEncdecStack(next, /*decoder=*/true, norm_);
  } else {
    BuildLlamaFamily(next);
    rotary_frequencies_ =
        at::tensor(RotaryFrequencies(config), at::kDouble).to(tokens_.device());
  }
  const bool scalar = config.head == HeadKind::kScalar;
  if (scalar || !config.tied_embeddings) {
    Linear head = next.Head(scalar ? config.score_bias : encdec);
    head_weight_ = head.weight;
    head_bias_ = head.bias;
  } else {
    head_weight_ = tokens_;
  }
  COX_CHECK(next.done());
  held_ = next.TakeHeld();
}

void Network::Assign(const std::vector<at::Tensor>& parameters) {
  c10::AutoGradMode no_grad(false);
  COX_CHECK(parameters.size() == held_.size());
  for (size_t i = 0; i < held_.size(); ++i) held_[i].copy_(parameters[i]);
}

void Network::BuildGpt2(Cursor& next) {
  positions_ = next.Tensor();
  for (int64_t i = 0; i < config_.layers; ++i) {
    Block block;
    block.norm1 = next.LayerNorm();
    block.self.qkv = next.Conv1d();
    block.self.o = next.Conv1d();
    block.norm2 = next.LayerNorm();
    block.up = next.Conv1d();
    block.down = next.Conv1d();
    blocks_.push_back(std::move(block));
  }
  norm_ = next.LayerNorm();
}

void Network::BuildLlamaFamily(Cursor& next) {
  const bool qwen2 = config_.family == ModelFamily::kQwen2;
  const bool qkv_bias = qwen2 || config_.attention_bias;
  for (int64_t i = 0; i < config_.layers; ++i) {
    Block block;
    block.norm1.weight = next.Tensor();
    block.self.q = next.Linear(qkv_bias);
    block.self.k = next.Linear(qkv_bias);
    block.self.v = next.Linear(qkv_bias);
    block.self.o = next.Linear(!qwen2 && config_.attention_bias);
    if (config_.family == ModelFamily::kQwen3) {
      block.self.q_norm = next.Tensor();
      block.self.k_norm = next.Tensor();
    }
    block.norm2.weight = next.Tensor();
    block.gate = next.Linear(config_.mlp_bias);
    block.up = next.Linear(config_.mlp_bias);
    block.down = next.Linear(config_.mlp_bias);
    blocks_.push_back(std::move(block));
  }
  norm_.weight = next.Tensor();
}

std::vector<Network::Block> Network::BuildEncdecStack(Cursor& next,
                                                      bool decoder,
                                                      Norm& last) {
  auto attention = [&next] {
    AttentionWeights w;
    w.q = next.Linear(/*bias=*/true);
    w.k = next.Linear(/*bias=*/true);
    w.v = next.Linear(/*bias=*/true);
    w.o = next.Linear(/*bias=*/true);
    return w;
  };
  std::vector<Block> stack;
  const int64_t layers = decoder ? config_.layers : config_.encoder_layers;
  for (int64_t i = 0; i < layers; ++i) {
    Block block;
    block.norm1 = next.LayerNorm();
    block.self = attention();
    if (decoder) {
      block.norm_cross = next.LayerNorm();
      block.cross = attention();
    }
    block.norm2 = next.LayerNorm();
    block.up = next.Linear(/*bias=*/true);
    block.down = next.Linear(/*bias=*/true);
    stack.push_back(std::move(block));
  }
  last = next.LayerNorm();
  return stack;
}

at::Tensor Network::Apply(const Linear& linear, const at::Tensor& x) const {
  return Affine(x, linear.weight, linear.bias, linear.input_major);
}

at::Tensor Network::Apply(const Norm& norm, const at::Tensor& x) const {
  if (!norm.bias.defined()) return RmsNorm(x, norm.weight, config_.norm_eps);
  return at::layer_norm(x.to(norm.weight.scalar_type()), {x.size(-1)},
                        norm.weight, norm.bias, config_.norm_eps)
      .to(x.scalar_type());
}

// Llama and its kin drop attention probabilities only, as their reference
// implementation does (docs/algorithms.md §13.1).
at::Tensor Network::Drop(const at::Tensor& x, int64_t layer, DropoutSite site,
                         AttentionBackend& attention) const {
  return positions_.defined() ? attention.Drop(x, layer, site) : x;
}

at::Tensor Network::Mlp(const Block& block, const at::Tensor& x, int64_t layer,
                        AttentionBackend& attention) const {
  if (block.gate.weight.defined()) {
    return Apply(block.down,
                 at::silu(Apply(block.gate, x)).mul(Apply(block.up, x)));
  }
  // GPT-2: gelu_new; encoder-decoder: the erf form.
  const bool gpt2 = config_.family == ModelFamily::kGpt2;
  at::Tensor hidden = Gelu(Apply(block.up, x), gpt2);
  if (!gpt2) hidden = Drop(hidden, layer, DropoutSite::kHidden, attention);
  return Drop(Apply(block.down, hidden), layer, DropoutSite::kFeedForward,
              attention);
}

// Angles in float64, so that long contexts lose nothing before cos and sin.
Network::Rotary Network::MakeRotary(const at::Tensor& positions) const {
  Rotary rotary;
  if (!rotary_frequencies_.defined()) return rotary;
  at::Tensor angles =
      positions.to(at::kDouble).unsqueeze(-1).mul(rotary_frequencies_);
  angles = at::cat({angles, angles}, /*dim=*/-1).unsqueeze(1);
  const double amplitude = RotaryAmplitude(config_);
  rotary.cos = angles.cos().mul(amplitude).to(tokens_.scalar_type());
  rotary.sin = angles.sin().mul(amplitude).to(tokens_.scalar_type());
  return rotary;
}

// Qwen3: RMSNorm over each head of [N, heads, head_dim].
at::Tensor Network::HeadNorm(const at::Tensor& weight,
                             const at::Tensor& x) const {
  return weight.defined() ? RmsNorm(x, weight, config_.norm_eps) : x;
}

at::Tensor Network::SelfAttention(const AttentionWeights& w,
                                  const at::Tensor& x, int64_t layer,
                                  const Rotary& rotary,
                                  AttentionBackend& attention) const {
  AttentionBackend::Input in;
  in.layer = layer;
  in.scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  if (config_.scale_by_inverse_layer) {
    in.scale /= static_cast<double>(layer + 1);
  }
  if (w.qkv.weight.defined()) {
    // split, not three narrows: its backward is one concatenation.
    std::vector<at::Tensor> parts =
        at::split(Apply(w.qkv, x), config_.hidden, /*dim=*/-1);
    in.q = parts[0];
    in.k = parts[1];
    in.v = parts[2];
  } else {
    in.q = Apply(w.q, x);
    in.k = Apply(w.k, x);
    in.v = Apply(w.v, x);
  }
  if (rotary.cos.defined()) {
    const int64_t n = x.size(0);
    const bool rotate = !attention.Rotates();
    auto encode = [&](const at::Tensor& t, const at::Tensor& norm) {
      at::Tensor heads = HeadNorm(norm, t.view({n, -1, config_.head_dim}));
      if (rotate) heads = Rotate(heads, rotary.cos, rotary.sin);
      return heads.to(t.scalar_type()).view({n, -1});
    };
    in.q = encode(in.q, w.q_norm);
    in.k = encode(in.k, w.k_norm);
    if (!rotate) {
      in.cos = rotary.cos;
      in.sin = rotary.sin;
    }
  }
  return Drop(Apply(w.o, attention.Self(in)), layer, DropoutSite::kSelfOutput,
              attention);
}

at::Tensor Network::Encode(const TokenRows& host_rows,
                           AttentionBackend& attention) const {
  const TokenRows rows = OnDevice(host_rows);
  at::Tensor x = at::embedding(tokens_, rows.ids)
                     .add(at::embedding(encoder_positions_, rows.positions));
  x = Drop(x, /*layer=*/0, DropoutSite::kEmbedding, attention);
  if (options_.bf16) x = x.to(at::kBFloat16);
  for (size_t i = 0; i < encoder_.size(); ++i) {
    const Block& block = encoder_[i];
    const int64_t layer = static_cast<int64_t>(i);
    x = x.add(SelfAttention(block.self, Apply(block.norm1, x), layer, Rotary(),
                            attention));
    x = x.add(Mlp(block, Apply(block.norm2, x), layer, attention));
  }
  return Apply(encoder_norm_, x);
}

at::Tensor Network::DecoderLayer(int64_t layer, const LayerInput& input,
                                 AttentionBackend& attention) const {
  const Block& block = blocks_[static_cast<size_t>(layer)];
  at::Tensor x = input.x;
  x = x.add(SelfAttention(block.self, Apply(block.norm1, x), layer,
                          input.rotary, attention));
  if (block.cross.q.weight.defined()) {
    AttentionBackend::Input in;
    in.layer = layer;
    in.scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
    in.q = Apply(block.cross.q, Apply(block.norm_cross, x));
    if (input.memory_k.defined()) {
      in.k = Apply(block.cross.k, input.memory_k);
      in.v = Apply(block.cross.v, input.memory_v);
    }
    x = x.add(Drop(Apply(block.cross.o, attention.Cross(in)), layer,
                   DropoutSite::kCrossOutput, attention));
  }
  return x.add(Mlp(block, Apply(block.norm2, x), layer, attention));
}

TokenRows Network::OnDevice(const TokenRows& rows) const {
  return {rows.ids.to(device()), rows.positions.to(device())};
}

at::Tensor Network::Decode(const TokenRows& host_rows, const at::Tensor& memory,
                           AttentionBackend& attention) const {
  const TokenRows rows = OnDevice(host_rows);
  at::Tensor x = at::embedding(tokens_, rows.ids);
  if (positions_.defined()) {
    x = x.add(at::embedding(positions_, rows.positions));
  }
  x = Drop(x, /*layer=*/0, DropoutSite::kEmbedding, attention);
  if (options_.bf16) x = x.to(at::kBFloat16);
  const Rotary rotary = MakeRotary(rows.positions);
  const bool recompute = options_.recompute && c10::GradMode::is_enabled();
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const int64_t layer = static_cast<int64_t>(i);
    if (!recompute) {
      x = DecoderLayer(layer, {x, memory, memory, rotary}, attention);
      continue;
    }
    // In this order a memory's gradients are added as without.
    x = Recompute({x, memory, memory}, [this, layer, rotary,
                                        &attention](const Recomputed& in) {
      return DecoderLayer(layer, {in[0], in[2], in[1], rotary}, attention);
    });
  }
  return Apply(norm_, x);
}

}  // namespace cox
