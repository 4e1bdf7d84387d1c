// Names, shapes and initial values of a model's parameters.

#include <cmath>
#include <cstring>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/rng.h"
#include "lib/engine/model_config.h"

namespace cox {
namespace {

using Shapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

class LayoutBuilder {
 public:
  void Weight(const std::string& stem, std::vector<int64_t> shape) {
    out_.emplace_back(stem + ".weight", std::move(shape));
  }
  void Bias(const std::string& stem, int64_t size) {
    out_.emplace_back(stem + ".bias", std::vector<int64_t>{size});
  }
  void Norm(const std::string& stem, int64_t size) {
    Weight(stem, {size});
    Bias(stem, size);
  }
  // torch.nn.Linear stores [out, in]; GPT-2's Conv1D [in, out].
  void Linear(const std::string& stem, int64_t in, int64_t out, bool bias) {
    Weight(stem, {out, in});
    if (bias) Bias(stem, out);
  }
  void Conv1d(const std::string& stem, int64_t in, int64_t out) {
    Weight(stem, {in, out});
    Bias(stem, out);
  }
  Shapes Take() { return std::move(out_); }

 private:
  Shapes out_;
};

void AddGpt2(const ModelConfig& c, LayoutBuilder& out) {
  const std::string root = "transformer.";
  out.Weight(root + "wte", {c.vocab_size, c.hidden});
  out.Weight(root + "wpe", {c.max_positions, c.hidden});
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = absl::StrCat(root, "h.", i, ".");
    out.Norm(layer + "ln_1", c.hidden);
    out.Conv1d(layer + "attn.c_attn", c.hidden, 3 * c.hidden);
    out.Conv1d(layer + "attn.c_proj", c.hidden, c.hidden);
    out.Norm(layer + "ln_2", c.hidden);
    out.Conv1d(layer + "mlp.c_fc", c.hidden, c.intermediate);
    out.Conv1d(layer + "mlp.c_proj", c.intermediate, c.hidden);
  }
  out.Norm(root + "ln_f", c.hidden);
}

void AddLlamaFamily(const ModelConfig& c, LayoutBuilder& out) {
  const bool qkv_bias = c.family == ModelFamily::kQwen2 || c.attention_bias;
  const bool o_bias = c.family != ModelFamily::kQwen2 && c.attention_bias;
  const int64_t q_size = c.heads * c.head_dim;
  const int64_t kv_size = c.kv_heads * c.head_dim;
  out.Weight("model.embed_tokens", {c.vocab_size, c.hidden});
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    const std::string attention = layer + "self_attn.";
    out.Weight(layer + "input_layernorm", {c.hidden});
    out.Linear(attention + "q_proj", c.hidden, q_size, qkv_bias);
    out.Linear(attention + "k_proj", c.hidden, kv_size, qkv_bias);
    out.Linear(attention + "v_proj", c.hidden, kv_size, qkv_bias);
    out.Linear(attention + "o_proj", q_size, c.hidden, o_bias);
    if (c.family == ModelFamily::kQwen3) {
      out.Weight(attention + "q_norm", {c.head_dim});
      out.Weight(attention + "k_norm", {c.head_dim});
    }
    out.Weight(layer + "post_attention_layernorm", {c.hidden});
    out.Linear(layer + "mlp.gate_proj", c.hidden, c.intermediate, c.mlp_bias);
    out.Linear(layer + "mlp.up_proj", c.hidden, c.intermediate, c.mlp_bias);
    out.Linear(layer + "mlp.down_proj", c.intermediate, c.hidden, c.mlp_bias);
  }
  out.Weight("model.norm", {c.hidden});
}

void AddEncdecStack(const ModelConfig& c, const std::string& stack,
                    LayoutBuilder& out) {
  const bool decoder = stack == "decoder";
  const int64_t layers = decoder ? c.layers : c.encoder_layers;
  for (int64_t i = 0; i < layers; ++i) {
    const std::string layer = absl::StrCat(stack, ".layers.", i, ".");
    auto attention = [&](const std::string& name) {
      for (const char* part : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
        out.Linear(absl::StrCat(layer, name, ".", part), c.hidden, c.hidden,
                   /*bias=*/true);
      }
    };
    out.Norm(layer + "norm1", c.hidden);
    attention("self_attn");
    out.Norm(layer + "norm2", c.hidden);
    if (decoder) {
      attention("cross_attn");
      out.Norm(layer + "norm3", c.hidden);
    }
    out.Linear(layer + "fc1", c.hidden, c.intermediate, /*bias=*/true);
    out.Linear(layer + "fc2", c.intermediate, c.hidden, /*bias=*/true);
  }
  out.Norm(stack + ".norm", c.hidden);
}

void AddEncdec(const ModelConfig& c, LayoutBuilder& out) {
  out.Weight("embed_tokens", {c.vocab_size, c.hidden});
  out.Weight("encoder.embed_positions", {c.max_positions, c.hidden});
  out.Weight("decoder.embed_positions", {c.max_positions, c.hidden});
  AddEncdecStack(c, "encoder", out);
  AddEncdecStack(c, "decoder", out);
}

int64_t ElementCount(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t dimension : shape) count *= dimension;
  return count;
}

bool IsHead(std::string_view name) {
  return name.starts_with("score.") || name.starts_with("lm_head.");
}

bool IsResidualProjection(std::string_view name) {
  for (std::string_view suffix :
       {"attn.c_proj.weight", "mlp.c_proj.weight", "o_proj.weight",
        "down_proj.weight", "fc2.weight"}) {
    if (name.ends_with(suffix)) return true;
  }
  return false;
}

// One stream per tensor name, so that a trunk has the same initial values
// under every head.
void InitializeTensor(const ModelConfig& config, uint64_t seed,
                      const std::string& name,
                      const std::vector<int64_t>& shape, std::span<float> out) {
  if (name.ends_with(".bias") || shape.size() < 2) {
    std::fill(out.begin(), out.end(), name.ends_with(".bias") ? 0.0f : 1.0f);
    return;
  }
  double scale = 0.02;
  if (name == "score.weight") {
    // docs/algorithms.md §4.
    scale = 1.0 / std::sqrt(static_cast<double>(config.hidden) + 1.0);
  } else if (IsResidualProjection(name)) {
    int64_t layers =
        name.starts_with("encoder.") ? config.encoder_layers : config.layers;
    scale /= std::sqrt(2.0 * static_cast<double>(layers));
  }
  CounterRng rng(seed, "init/" + name);
  for (float& value : out) value = static_cast<float>(scale * rng.NextNormal());
}

}  // namespace

std::vector<std::pair<std::string, std::vector<int64_t>>> ParameterShapes(
    const ModelConfig& config) {
  LayoutBuilder out;
  const bool encdec = config.family == ModelFamily::kInstructEncdec;
  if (config.family == ModelFamily::kGpt2) {
    AddGpt2(config, out);
  } else if (encdec) {
    AddEncdec(config, out);
  } else {
    AddLlamaFamily(config, out);
  }
  if (config.head == HeadKind::kScalar) {
    out.Linear("score", config.hidden, 1, config.score_bias);
  } else if (!config.tied_embeddings) {
    out.Linear("lm_head", config.hidden, config.vocab_size, /*bias=*/encdec);
  }
  return out.Take();
}

std::optional<int32_t> ModelConfig::DecoderStart() const {
  if (family != ModelFamily::kInstructEncdec) return std::nullopt;
  if (bos_id.has_value()) return bos_id;
  return eos_ids.empty() ? 0 : eos_ids.front();
}

Manifest ParameterLayout(const ModelConfig& config, std::string model) {
  return LayOut(std::move(model), config.ToJson(), DType::kF32,
                ParameterShapes(config));
}

void InitializeParameters(const ModelConfig& config, uint64_t seed,
                          std::span<float> parameters) {
  Manifest layout = ParameterLayout(config, "");
  COX_CHECK(parameters.size() * sizeof(float) >= layout.arena_bytes);
  std::fill(parameters.begin(), parameters.end(), 0.0f);
  for (const TensorInfo& tensor : layout.tensors) {
    InitializeTensor(
        config, seed, tensor.name, tensor.shape,
        parameters.subspan(tensor.offset / sizeof(float),
                           static_cast<size_t>(ElementCount(tensor.shape))));
  }
}

void SineFill(const ModelConfig& config, double a, double b,
              std::span<float> parameters) {
  Manifest layout = ParameterLayout(config, "");
  COX_CHECK(parameters.size() * sizeof(float) >= layout.arena_bytes);
  for (size_t k = 0; k < layout.tensors.size(); ++k) {
    const TensorInfo& tensor = layout.tensors[k];
    for (int64_t n = 0; n < ElementCount(tensor.shape); ++n) {
      parameters[tensor.offset / sizeof(float) + static_cast<size_t>(n)] =
          static_cast<float>(
              SineFillValue(tensor, static_cast<int64_t>(k), n, a, b));
    }
  }
}

double SineFillValue(const TensorInfo& tensor, int64_t k, int64_t n, double a,
                     double b) {
  double s = std::sin(a * static_cast<double>(k) + b * static_cast<double>(n));
  if (tensor.name.ends_with(".bias")) return 0.1 * s;
  return tensor.shape.size() < 2 ? 1.0 + 0.1 * s : 0.2 * s;
}

absl::StatusOr<std::shared_ptr<const Snapshot>> WithHead(const Snapshot& from,
                                                         HeadKind head,
                                                         std::string model,
                                                         uint64_t seed) {
  COX_ASSIGN_OR_RETURN(ModelConfig config,
                       ModelConfig::FromJson(from.manifest.config_json));
  if (config.head != head) {
    config.reward_gain = 1.0;
    config.reward_bias = 0.0;
    config.score_bias = false;
  }
  config.head = head;
  Manifest layout = ParameterLayout(config, std::move(model));
  std::map<std::string_view, const TensorInfo*> sources;
  for (const TensorInfo& tensor : from.manifest.tensors) {
    sources.emplace(tensor.name, &tensor);
  }
  auto arena = std::make_shared<Arena>(layout.arena_bytes);
  for (const TensorInfo& tensor : layout.tensors) {
    auto source = sources.find(tensor.name);
    if (source == sources.end()) {
      if (!IsHead(tensor.name)) {
        return absl::FailedPreconditionError(
            absl::StrCat("new head: tensor ", tensor.name, " is missing"));
      }
      InitializeTensor(config, seed, tensor.name, tensor.shape,
                       arena->floats().subspan(
                           tensor.offset / sizeof(float),
                           static_cast<size_t>(ElementCount(tensor.shape))));
      continue;
    }
    const TensorInfo& found = *source->second;
    if (found.shape != tensor.shape || found.dtype != DType::kF32) {
      return absl::FailedPreconditionError(
          absl::StrCat("new head: tensor ", tensor.name, ": expected F32 [",
                       absl::StrJoin(tensor.shape, ", "), "], found ",
                       std::string(DTypeName(found.dtype)), " [",
                       absl::StrJoin(found.shape, ", "), "]"));
    }
    COX_ASSIGN_OR_RETURN(auto bytes, from.Tensor(tensor.name));
    std::memcpy(arena->bytes().data() + tensor.offset, bytes.data(),
                bytes.size());
  }
  return MakeSnapshot(std::move(layout), std::move(arena));
}

}  // namespace cox
