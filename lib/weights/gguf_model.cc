#include "lib/weights/gguf_model.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

struct Architecture {
  std::string_view name;  // in the file, and Hugging Face's model_type
  std::string_view class_name;
  // The converter interleaves the halves of each rotary head.
  bool interleaved;
};
constexpr std::array<Architecture, 3> kArchitectures = {{
    {"llama", "LlamaForCausalLM", true},
    {"qwen2", "Qwen2ForCausalLM", false},
    {"qwen3", "Qwen3ForCausalLM", false},
}};

absl::StatusOr<Architecture> ArchitectureOf(const GgufHeader& header) {
  COX_ASSIGN_OR_RETURN(const std::optional<std::string> found,
                       header.Text("general.architecture"));
  const std::string name = found.value_or("");
  for (const Architecture& known : kArchitectures) {
    if (name == known.name) return known;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "gguf: general.architecture: expected llama, qwen2 or qwen3, found '",
      name, "'"));
}

const GgufTensor* FindTensor(const GgufHeader& header, std::string_view name) {
  for (const GgufTensor& tensor : header.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

// The decimal that a float32 was written from: 1e-05, not its float64 digits.
double Shortest(double value) {
  char text[32];
  const std::to_chars_result end =
      std::to_chars(text, text + sizeof(text) - 1, static_cast<float>(value));
  *end.ptr = '\0';
  return std::strtod(text, nullptr);
}

// Keys of the architecture, with the first error kept.
class Keys {
 public:
  Keys(const GgufHeader& header, std::string_view architecture)
      : header_(header),
        prefix_(absl::StrCat(std::string(architecture), ".")) {}
  const absl::Status& status() const { return status_; }

  std::optional<int64_t> Find(const std::string& key) {
    return Kept(header_.Integer(prefix_ + key));
  }
  int64_t Integer(const std::string& key) {
    const std::optional<int64_t> value = Find(key);
    if (status_.ok() &&
        (!value.has_value() || *value < 1 || *value > int64_t{1} << 31)) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat("gguf: ", prefix_, key, ": expected 1 to 2^31, found ",
                       value.has_value() ? absl::StrCat(*value) : "nothing"));
    }
    return value.value_or(1);
  }
  std::optional<double> Number(const std::string& key) {
    return Kept(header_.Number(prefix_ + key));
  }
  std::optional<std::string> Text(const std::string& key) {
    return Kept(header_.Text(prefix_ + key));
  }

 private:
  template <typename T>
  std::optional<T> Kept(absl::StatusOr<std::optional<T>> read) {
    if (read.ok()) return *read;
    if (status_.ok()) status_ = read.status();
    return std::nullopt;
  }

  const GgufHeader& header_;
  std::string prefix_;
  absl::Status status_;
};

absl::Status NotSupported(const std::string& what) {
  return absl::FailedPreconditionError(absl::StrCat("gguf: ", what));
}

// Llama 3's scaling is stored as one divisor per frequency. Published files
// all come from the same constants; they are tried and held against the list.
absl::StatusOr<Json> Llama3Scaling(const std::vector<float>& divisors,
                                   double theta) {
  constexpr double kLow = 1.0, kHigh = 4.0, kOriginal = 8192.0;
  const double factor = divisors.empty() ? 0 : double{divisors.back()};
  const double n = static_cast<double>(divisors.size());
  bool fits = factor > 0;
  for (size_t i = 0; fits && i < divisors.size(); ++i) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(theta, static_cast<double>(i) / n);
    double expected = 1.0;
    if (wavelength > kOriginal / kLow) {
      expected = factor;
    } else if (wavelength >= kOriginal / kHigh) {
      const double smooth = (kOriginal / wavelength - kLow) / (kHigh - kLow);
      expected = 1.0 / ((1.0 - smooth) / factor + smooth);
    }
    fits = std::abs(double{divisors[i]} - expected) <= 1e-4 * expected;
  }
  if (!fits) {
    return NotSupported(
        "rope_freqs.weight: expected Llama 3's scaling (low 1, high 4, "
        "original length 8192), found other factors");
  }
  return Json{{"rope_type", "llama3"},
              {"factor", Shortest(factor)},
              {"low_freq_factor", kLow},
              {"high_freq_factor", kHigh},
              {"original_max_position_embeddings", 8192}};
}

absl::StatusOr<Json> RopeScalingJson(Keys& keys) {
  const std::string type = keys.Text("rope.scaling.type").value_or("none");
  std::optional<double> factor = keys.Number("rope.scaling.factor");
  if (!factor.has_value()) factor = keys.Number("rope.scale_linear");
  COX_RETURN_IF_ERROR(keys.status());
  if (type == "linear" || (type == "none" && factor.value_or(1.0) != 1.0)) {
    return Json{{"rope_type", "linear"},
                {"factor", Shortest(factor.value_or(1.0))}};
  }
  if (type == "none") return Json();
  if (type != "yarn") {
    return NotSupported(absl::StrCat(
        "rope.scaling.type: expected none, linear or yarn, found '", type,
        "'"));
  }
  return Json{{"rope_type", "yarn"},
              {"factor", Shortest(factor.value_or(1.0))},
              {"original_max_position_embeddings",
               keys.Integer("rope.scaling.original_context_length")}};
}

void SetTokenIds(const GgufHeader& header, Json& out, absl::Status& status) {
  for (const auto& [name, key] :
       {std::pair("bos_token_id", "tokenizer.ggml.bos_token_id"),
        std::pair("eos_token_id", "tokenizer.ggml.eos_token_id"),
        std::pair("pad_token_id", "tokenizer.ggml.padding_token_id")}) {
    const auto id = header.Integer(key);
    status.Update(id.status());
    if (id.ok() && id->has_value()) out[name] = **id;
  }
}

// Hugging Face's name of a tensor; empty for one that has no place.
std::string FolderName(std::string_view name) {
  if (name == "token_embd.weight") return "model.embed_tokens.weight";
  if (name == "output_norm.weight") return "model.norm.weight";
  if (name == "output.weight") return "lm_head.weight";
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11>
      kParts = {{
          {"attn_norm", "input_layernorm"},
          {"attn_q", "self_attn.q_proj"},
          {"attn_k", "self_attn.k_proj"},
          {"attn_v", "self_attn.v_proj"},
          {"attn_output", "self_attn.o_proj"},
          {"attn_q_norm", "self_attn.q_norm"},
          {"attn_k_norm", "self_attn.k_norm"},
          {"ffn_norm", "post_attention_layernorm"},
          {"ffn_gate", "mlp.gate_proj"},
          {"ffn_up", "mlp.up_proj"},
          {"ffn_down", "mlp.down_proj"},
      }};
  constexpr std::string_view kBlockPrefix = "blk.";
  if (!name.starts_with(kBlockPrefix)) return "";
  name.remove_prefix(kBlockPrefix.size());
  const size_t first = name.find('.');
  const size_t last = name.rfind('.');
  if (first == std::string_view::npos || last <= first) return "";
  const std::string_view layer = name.substr(0, first);
  const std::string_view part = name.substr(first + 1, last - first - 1);
  const std::string_view kind = name.substr(last + 1);
  if (kind != "weight" && kind != "bias") return "";
  for (const auto& [theirs, ours] : kParts) {
    if (part == theirs) {
      return absl::StrCat("model.layers.", std::string(layer), ".",
                          std::string(ours), ".", std::string(kind));
    }
  }
  return "";
}

// Row 2j + s of a head goes to row s * half + j: from pairs of neighbours to
// the halves that rotate_half takes (docs/algorithms.md §12).
absl::StatusOr<std::string> WithoutInterleaving(const GgufTensor& tensor,
                                                std::string data,
                                                int64_t heads) {
  const int64_t rows = tensor.shape.front();
  if (heads < 1 || rows % (2 * heads) != 0) {
    return absl::DataLossError(absl::StrCat("gguf: tensor '", tensor.name,
                                            "': ", rows, " rows, expected ",
                                            heads, " heads of an even size"));
  }
  const auto width = data.size() / static_cast<size_t>(rows);
  const auto half = static_cast<size_t>(rows / heads / 2);
  std::string out(data.size(), '\0');
  for (size_t head = 0; head < static_cast<size_t>(heads); ++head) {
    for (size_t j = 0; j < half; ++j) {
      for (size_t s = 0; s < 2; ++s) {
        const size_t from = head * 2 * half + 2 * j + s;
        const size_t to = head * 2 * half + s * half + j;
        std::memcpy(out.data() + to * width, data.data() + from * width, width);
      }
    }
  }
  return out;
}

absl::StatusOr<RawTensor> ReadTensorData(Fs& fs, const std::string& path,
                                         const GgufTensor& tensor) {
  COX_ASSIGN_OR_RETURN(std::string data,
                       fs.ReadRange(path, tensor.offset, tensor.bytes));
  RawTensor raw{DType::kF32, tensor.shape, std::string()};
  if (tensor.type == GgufType::kF16 || tensor.type == GgufType::kBF16 ||
      tensor.type == GgufType::kF32) {
    raw.dtype = tensor.type == GgufType::kF16    ? DType::kF16
                : tensor.type == GgufType::kBF16 ? DType::kBF16
                                                 : DType::kF32;
    raw.data = std::move(data);
    return raw;
  }
  size_t elements = 1;
  for (const int64_t size : tensor.shape) elements *= static_cast<size_t>(size);
  std::vector<float> values(elements);
  COX_RETURN_IF_ERROR(DequantizeGguf(tensor.type, data, values));
  raw.data.assign(reinterpret_cast<const char*>(values.data()),
                  elements * sizeof(float));
  return raw;
}

// Adds what the header alone cannot say: the constants behind rope_freqs.
absl::Status AddRopeDivisors(Fs& fs, const std::string& path,
                             const GgufHeader& header, std::string& config) {
  const GgufTensor* tensor = FindTensor(header, "rope_freqs.weight");
  if (tensor == nullptr) return absl::OkStatus();
  if (tensor->type != GgufType::kF32 || tensor->shape.size() != 1) {
    return NotSupported("rope_freqs.weight: expected a list of F32");
  }
  COX_ASSIGN_OR_RETURN(const std::string data,
                       fs.ReadRange(path, tensor->offset, tensor->bytes));
  std::vector<float> divisors(data.size() / sizeof(float));
  if (!data.empty()) std::memcpy(divisors.data(), data.data(), data.size());
  Json json = Json::parse(config);
  COX_ASSIGN_OR_RETURN(
      json["rope_scaling"],
      Llama3Scaling(divisors, json["rope_theta"].get<double>()));
  config = json.dump(2) + "\n";
  return absl::OkStatus();
}

absl::StatusOr<ModelFolder> TextsOf(Fs& fs, const std::string& path,
                                    const GgufHeader& header) {
  ModelFolder folder;
  COX_ASSIGN_OR_RETURN(folder.config_json, GgufConfigJson(header));
  COX_RETURN_IF_ERROR(AddRopeDivisors(fs, path, header, folder.config_json));
  COX_ASSIGN_OR_RETURN(folder.tokenizer_json, GgufTokenizerJson(header));
  COX_ASSIGN_OR_RETURN(folder.tokenizer_config_json,
                       GgufTokenizerConfigJson(header));
  COX_ASSIGN_OR_RETURN(folder.generation_config_json,
                       GgufGenerationConfigJson(header));
  return folder;
}

absl::Status ReadTensors(Fs& fs, const std::string& path,
                         const GgufHeader& header, ModelFolder& folder) {
  COX_ASSIGN_OR_RETURN(const Architecture architecture, ArchitectureOf(header));
  Keys keys(header, architecture.name);
  const int64_t heads = keys.Integer("attention.head_count");
  const int64_t kv_heads = keys.Find("attention.head_count_kv").value_or(heads);
  COX_RETURN_IF_ERROR(keys.status());
  for (const GgufTensor& tensor : header.tensors) {
    if (tensor.name == "rope_freqs.weight") continue;
    const std::string name = FolderName(tensor.name);
    if (name.empty()) {
      return NotSupported(absl::StrCat("tensor '", tensor.name,
                                       "' has no place in a ",
                                       std::string(architecture.name)));
    }
    COX_ASSIGN_OR_RETURN(RawTensor raw, ReadTensorData(fs, path, tensor));
    const bool query = name.find(".q_proj.") != std::string::npos;
    if (architecture.interleaved &&
        (query || name.find(".k_proj.") != std::string::npos)) {
      COX_ASSIGN_OR_RETURN(raw.data,
                           WithoutInterleaving(tensor, std::move(raw.data),
                                               query ? heads : kv_heads));
    }
    folder.tensors.emplace(name, std::move(raw));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsGgufPath(std::string_view path) { return path.ends_with(".gguf"); }

absl::StatusOr<std::string> GgufConfigJson(const GgufHeader& header) {
  COX_ASSIGN_OR_RETURN(const Architecture architecture, ArchitectureOf(header));
  const GgufTensor* embedding = FindTensor(header, "token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::DataLossError("gguf: no matrix token_embd.weight");
  }
  Keys keys(header, architecture.name);
  if (keys.Find("expert_count").value_or(0) > 0) {
    return NotSupported("mixtures of experts are not supported");
  }
  Json out;
  out["model_type"] = std::string(architecture.name);
  out["architectures"] = Json::array({std::string(architecture.class_name)});
  out["vocab_size"] = embedding->shape.front();
  const int64_t hidden = keys.Integer("embedding_length");
  const int64_t heads = keys.Integer("attention.head_count");
  const int64_t head_dim =
      keys.Find("attention.key_length").value_or(hidden / heads);
  if (keys.Find("rope.dimension_count").value_or(head_dim) != head_dim) {
    return NotSupported(
        "rope.dimension_count: heads that rotate in part are "
        "not supported");
  }
  out["hidden_size"] = hidden;
  out["intermediate_size"] = keys.Integer("feed_forward_length");
  out["num_hidden_layers"] = keys.Integer("block_count");
  out["num_attention_heads"] = heads;
  out["num_key_value_heads"] =
      keys.Find("attention.head_count_kv").value_or(heads);
  out["head_dim"] = head_dim;
  out["max_position_embeddings"] = keys.Integer("context_length");
  out["rms_norm_eps"] =
      Shortest(keys.Number("attention.layer_norm_rms_epsilon").value_or(1e-5));
  out["rope_theta"] = Shortest(keys.Number("rope.freq_base").value_or(1e4));
  COX_ASSIGN_OR_RETURN(out["rope_scaling"], RopeScalingJson(keys));
  out["hidden_act"] = "silu";
  if (architecture.name != "qwen2") {
    out["attention_bias"] = FindTensor(header, "blk.0.attn_q.bias") != nullptr;
  }
  if (architecture.name == "llama") {
    out["mlp_bias"] = FindTensor(header, "blk.0.ffn_gate.bias") != nullptr;
  }
  out["tie_word_embeddings"] = FindTensor(header, "output.weight") == nullptr;
  absl::Status status = keys.status();
  SetTokenIds(header, out, status);
  COX_RETURN_IF_ERROR(status);
  return out.dump(2) + "\n";
}

absl::StatusOr<ModelFolder> ReadGgufTexts(Fs& fs, const std::string& path) {
  COX_ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(fs, path));
  absl::StatusOr<ModelFolder> folder = TextsOf(fs, path, header);
  return folder.ok() ? std::move(folder) : Annotate(folder.status(), path);
}

absl::StatusOr<ModelFolder> ReadGgufModel(Fs& fs, const std::string& path) {
  COX_ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(fs, path));
  absl::StatusOr<ModelFolder> folder = TextsOf(fs, path, header);
  if (!folder.ok()) return Annotate(folder.status(), path);
  COX_RETURN_IF_ERROR(Annotate(ReadTensors(fs, path, header, *folder), path));
  return folder;
}

}  // namespace cox
