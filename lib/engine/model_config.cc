#include "lib/engine/model_config.h"

#include <array>
#include <cmath>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

// Bounds that keep every product of two dimensions far from overflow.
constexpr int64_t kMaxDimension = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxParameters = int64_t{1} << 42;

struct FamilyNames {
  ModelFamily family;
  std::string_view model_type;
  std::string_view language_model;  // class names of `architectures`
  std::string_view scalar;
};
constexpr std::array<FamilyNames, 5> kFamilies = {{
    {ModelFamily::kGpt2, "gpt2", "GPT2LMHeadModel",
     "GPT2ForSequenceClassification"},
    {ModelFamily::kLlama, "llama", "LlamaForCausalLM",
     "LlamaForSequenceClassification"},
    {ModelFamily::kQwen2, "qwen2", "Qwen2ForCausalLM",
     "Qwen2ForSequenceClassification"},
    {ModelFamily::kQwen3, "qwen3", "Qwen3ForCausalLM",
     "Qwen3ForSequenceClassification"},
    {ModelFamily::kInstructEncdec, "instruct_encdec",
     "InstructEncdecForConditionalGeneration",
     "InstructEncdecForSequenceClassification"},
}};

const FamilyNames& NamesOf(ModelFamily family) {
  for (const FamilyNames& names : kFamilies) {
    if (names.family == family) return names;
  }
  COX_CHECK(false);
}

struct RopeName {
  RopeKind kind;
  std::string_view name;  // rope_type
};
constexpr std::array<RopeName, 3> kRopeNames = {{
    {RopeKind::kLlama3, "llama3"},
    {RopeKind::kLinear, "linear"},
    {RopeKind::kYarn, "yarn"},
}};

absl::Status Bad(std::string_view key, std::string_view expected,
                 const Json& found) {
  // Bounded: the value may come from a file of any size.
  std::string text = found.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 80) + "...";
  return absl::InvalidArgumentError(
      absl::StrCat("config.json: ", std::string(key), ": expected ",
                   std::string(expected), ", found ", text));
}

// Typed reads that keep the first error, so that parsing reads as a list.
class Reader {
 public:
  explicit Reader(const Json& object) : object_(object) {}
  const absl::Status& status() const { return status_; }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  // Null counts as absent, as in transformers.
  const Json* Find(std::string_view key) const {
    auto it = object_.find(std::string(key));
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  int64_t Int(std::string_view key, std::optional<int64_t> missing) {
    const Json* value = Find(key);
    if (value == nullptr) {
      if (!missing.has_value()) {
        Fail(absl::InvalidArgumentError(
            absl::StrCat("config.json: ", std::string(key),
                         ": expected an integer, found nothing")));
      }
      return missing.value_or(0);
    }
    if (!value->is_number_integer() ||
        (value->is_number_unsigned() &&
         value->get<uint64_t>() >
             uint64_t{std::numeric_limits<int32_t>::max()})) {
      Fail(Bad(key, "an integer below 2^31", *value));
      return 0;
    }
    return value->get<int64_t>();
  }
  double Double(std::string_view key, double missing) {
    const Json* value = Find(key);
    if (value == nullptr) return missing;
    if (!value->is_number()) {
      Fail(Bad(key, "a number", *value));
      return missing;
    }
    return value->get<double>();
  }
  bool Bool(std::string_view key, bool missing) {
    const Json* value = Find(key);
    if (value == nullptr) return missing;
    if (!value->is_boolean()) {
      Fail(Bad(key, "true or false", *value));
      return missing;
    }
    return value->get<bool>();
  }
  std::string String(std::string_view key, std::string_view missing) {
    const Json* value = Find(key);
    if (value == nullptr) return std::string(missing);
    if (!value->is_string()) {
      Fail(Bad(key, "a string", *value));
      return std::string(missing);
    }
    return value->get<std::string>();
  }
  // What the value must be for the network to be ours, when present.
  void Require(std::string_view key, const Json& expected) {
    const Json* value = Find(key);
    if (value != nullptr && *value != expected) {
      Fail(Bad(key, expected.dump(), *value));
    }
  }

 private:
  const Json& object_;
  absl::Status status_;
};

void ReadTokenIds(Reader& in, ModelConfig& config) {
  auto id = [&in](std::string_view key) -> std::optional<int32_t> {
    if (in.Find(key) == nullptr) return std::nullopt;
    int64_t value = in.Int(key, 0);
    // Some published files say -1 for "none".
    if (value < 0) return std::nullopt;
    return static_cast<int32_t>(value);
  };
  config.bos_id = id("bos_token_id");
  config.pad_id = id("pad_token_id");
  const Json* eos = in.Find("eos_token_id");
  if (eos == nullptr) return;
  if (!eos->is_array()) {
    if (auto value = id("eos_token_id")) config.eos_ids = {*value};
    return;
  }
  for (const Json& value : *eos) {
    if (!value.is_number_integer() || value.get<int64_t>() < 0 ||
        value.get<int64_t>() > std::numeric_limits<int32_t>::max()) {
      in.Fail(Bad("eos_token_id", "token ids", *eos));
      return;
    }
    config.eos_ids.push_back(value.get<int32_t>());
  }
}

// What the kind of `rope` adds to the factor.
RopeScaling ReadRopeScaling(Reader& rope, RopeKind kind,
                            int64_t max_positions) {
  RopeScaling scaling;
  scaling.kind = kind;
  scaling.factor = rope.Double("factor", 1.0);
  if (kind == RopeKind::kLinear) return scaling;
  scaling.original_max_position =
      rope.Int("original_max_position_embeddings", max_positions);
  if (kind == RopeKind::kLlama3) {
    scaling.low_freq_factor = rope.Double("low_freq_factor", 1.0);
    scaling.high_freq_factor = rope.Double("high_freq_factor", 4.0);
    return scaling;
  }
  scaling.beta_fast = rope.Double("beta_fast", 32.0);
  scaling.beta_slow = rope.Double("beta_slow", 1.0);
  scaling.truncate = rope.Bool("truncate", true);
  if (rope.Find("attention_factor") != nullptr) {
    scaling.attention_factor = rope.Double("attention_factor", 1.0);
  }
  // DeepSeek's way to derive the attention factor.
  for (const char* key : {"mscale", "mscale_all_dim"}) {
    if (rope.Find(key) != nullptr) {
      rope.Fail(Bad(key, "nothing", *rope.Find(key)));
    }
  }
  return scaling;
}

// Old files: rope_theta and rope_scaling; new files: both in rope_parameters.
void ReadRope(Reader& in, ModelConfig& config) {
  config.rope_theta = in.Double("rope_theta", 10000.0);
  const Json* scaling = in.Find("rope_parameters");
  std::string_view key = "rope_parameters";
  if (scaling == nullptr) {
    key = "rope_scaling";
    scaling = in.Find(key);
  }
  if (scaling == nullptr) return;
  if (!scaling->is_object()) {
    in.Fail(Bad(key, "an object", *scaling));
    return;
  }
  Reader rope(*scaling);
  config.rope_theta = rope.Double("rope_theta", config.rope_theta);
  std::string type = rope.String("rope_type", rope.String("type", "default"));
  for (const RopeName& known : kRopeNames) {
    if (type == known.name) {
      config.rope_scaling =
          ReadRopeScaling(rope, known.kind, config.max_positions);
    }
  }
  if (!config.rope_scaling.has_value() && type != "default") {
    rope.Fail(Bad(key, "rope_type default, llama3, linear or yarn", *scaling));
  }
  if (!rope.status().ok()) in.Fail(Annotate(rope.status(), key));
}

void ReadGpt2(Reader& in, ModelConfig& config) {
  config.hidden = in.Int("n_embd", std::nullopt);
  config.layers = in.Int("n_layer", std::nullopt);
  config.heads = in.Int("n_head", std::nullopt);
  config.kv_heads = config.heads;
  config.head_dim = config.heads > 0 ? config.hidden / config.heads : 0;
  config.intermediate = in.Int("n_inner", 4 * config.hidden);
  config.max_positions = in.Int("n_positions", in.Int("n_ctx", 1024));
  config.norm_eps = in.Double("layer_norm_epsilon", 1e-5);
  config.tied_embeddings = in.Bool("tie_word_embeddings", true);
  config.attention_bias = true;
  config.mlp_bias = true;
  config.scale_by_inverse_layer =
      in.Bool("scale_attn_by_inverse_layer_idx", false);
  in.Require("scale_attn_weights", true);
  in.Require("add_cross_attention", false);
  // Two names of one formula.
  if (in.String("activation_function", "gelu_new") != "gelu_pytorch_tanh") {
    in.Require("activation_function", "gelu_new");
  }
}

void ReadLlamaFamily(Reader& in, ModelConfig& config) {
  config.hidden = in.Int("hidden_size", std::nullopt);
  config.intermediate = in.Int("intermediate_size", std::nullopt);
  config.layers = in.Int("num_hidden_layers", std::nullopt);
  config.heads = in.Int("num_attention_heads", std::nullopt);
  config.kv_heads = in.Int("num_key_value_heads", config.heads);
  // Qwen3's head_dim does not follow from the width; 128 is its default.
  int64_t derived = config.heads > 0 ? config.hidden / config.heads : 0;
  config.head_dim =
      in.Int("head_dim", config.family == ModelFamily::kQwen3 ? 128 : derived);
  config.max_positions = in.Int("max_position_embeddings", 2048);
  config.norm_eps = in.Double("rms_norm_eps", 1e-6);
  config.tied_embeddings = in.Bool("tie_word_embeddings", false);
  if (config.family != ModelFamily::kQwen2) {
    config.attention_bias = in.Bool("attention_bias", false);
  }
  if (config.family == ModelFamily::kLlama) {
    config.mlp_bias = in.Bool("mlp_bias", false);
  }
  in.Require("hidden_act", "silu");
  in.Require("use_sliding_window", false);
  ReadRope(in, config);
}

void ReadEncdec(Reader& in, ModelConfig& config) {
  config.hidden = in.Int("d_model", std::nullopt);
  config.heads = in.Int("nhead", std::nullopt);
  config.kv_heads = config.heads;
  config.head_dim = config.heads > 0 ? config.hidden / config.heads : 0;
  config.encoder_layers = in.Int("num_encoder_layers", std::nullopt);
  config.layers = in.Int("num_decoder_layers", std::nullopt);
  config.intermediate = in.Int("dim_feedforward", 4 * config.hidden);
  config.max_positions = in.Int("max_len", 512);
  config.norm_eps = in.Double("layer_norm_eps", 1e-5);
  config.tied_embeddings = false;
  config.attention_bias = true;
  config.mlp_bias = true;
}

// Class name in `architectures` → head.
void ReadHead(Reader& in, ModelConfig& config) {
  const Json* architectures = in.Find("architectures");
  if (architectures != nullptr) {
    if (!architectures->is_array()) {
      in.Fail(Bad("architectures", "a list of names", *architectures));
      return;
    }
    for (const Json& name : *architectures) {
      if (name.is_string() && absl::StrContains(name.get<std::string>(),
                                                "ForSequenceClassification")) {
        config.head = HeadKind::kScalar;
      }
    }
  }
  if (config.head != HeadKind::kScalar) return;
  // transformers writes id2label in place of num_labels, and means 2 labels
  // when neither is there.
  int64_t labels = 2;
  if (const Json* names = in.Find("id2label");
      names != nullptr && names->is_object()) {
    labels = static_cast<int64_t>(names->size());
  }
  labels = in.Int("num_labels", labels);
  if (labels != 1) in.Fail(Bad("num_labels", "1", Json(labels)));
  config.score_bias = in.Bool("cox_score_bias", false);
  config.reward_gain = in.Double("cox_reward_gain", 1.0);
  config.reward_bias = in.Double("cox_reward_bias", 0.0);
}

Json RopeJson(const RopeScaling& s) {
  Json out;
  for (const RopeName& known : kRopeNames) {
    if (known.kind == s.kind) out["rope_type"] = std::string(known.name);
  }
  out["factor"] = s.factor;
  if (s.kind == RopeKind::kLinear) return out;
  out["original_max_position_embeddings"] = s.original_max_position;
  if (s.kind == RopeKind::kLlama3) {
    out["low_freq_factor"] = s.low_freq_factor;
    out["high_freq_factor"] = s.high_freq_factor;
    return out;
  }
  out["beta_fast"] = s.beta_fast;
  out["beta_slow"] = s.beta_slow;
  out["truncate"] = s.truncate;
  if (s.attention_factor.has_value()) {
    out["attention_factor"] = *s.attention_factor;
  }
  return out;
}

void WriteFamily(const ModelConfig& c, Json& out) {
  if (c.family == ModelFamily::kGpt2) {
    out["n_embd"] = c.hidden;
    out["n_layer"] = c.layers;
    out["n_head"] = c.heads;
    out["n_inner"] = c.intermediate;
    out["n_positions"] = c.max_positions;
    out["n_ctx"] = c.max_positions;
    out["layer_norm_epsilon"] = c.norm_eps;
    out["activation_function"] = "gelu_new";
    out["scale_attn_weights"] = true;
    out["scale_attn_by_inverse_layer_idx"] = c.scale_by_inverse_layer;
    out["reorder_and_upcast_attn"] = false;
    for (const char* key : {"embd_pdrop", "attn_pdrop", "resid_pdrop"}) {
      out[key] = 0.0;
    }
    return;
  }
  if (c.family == ModelFamily::kInstructEncdec) {
    out["d_model"] = c.hidden;
    out["nhead"] = c.heads;
    out["num_encoder_layers"] = c.encoder_layers;
    out["num_decoder_layers"] = c.layers;
    out["dim_feedforward"] = c.intermediate;
    out["max_len"] = c.max_positions;
    out["layer_norm_eps"] = c.norm_eps;
    out["dropout"] = 0.0;
    return;
  }
  out["hidden_size"] = c.hidden;
  out["intermediate_size"] = c.intermediate;
  out["num_hidden_layers"] = c.layers;
  out["num_attention_heads"] = c.heads;
  out["num_key_value_heads"] = c.kv_heads;
  out["head_dim"] = c.head_dim;
  out["max_position_embeddings"] = c.max_positions;
  out["rms_norm_eps"] = c.norm_eps;
  out["hidden_act"] = "silu";
  out["attention_dropout"] = 0.0;
  if (c.family != ModelFamily::kQwen2) out["attention_bias"] = c.attention_bias;
  if (c.family == ModelFamily::kLlama) {
    out["mlp_bias"] = c.mlp_bias;
  } else {
    out["use_sliding_window"] = false;
  }
  out["rope_theta"] = c.rope_theta;
  out["rope_scaling"] =
      c.rope_scaling.has_value() ? RopeJson(*c.rope_scaling) : Json();
}

absl::Status CheckRange(std::string_view key, int64_t value, int64_t low,
                        int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model config: ", std::string(key), ": expected ", low,
                   " to ", high, ", found ", value));
}

absl::Status CheckRope(const ModelConfig& c) {
  if (c.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model config: head_dim: expected an even number, found ", c.head_dim));
  }
  if (!(c.rope_theta > 0) || !std::isfinite(c.rope_theta)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model config: rope_theta: expected > 0, found ", c.rope_theta));
  }
  if (!c.rope_scaling.has_value()) return absl::OkStatus();
  const RopeScaling& s = *c.rope_scaling;
  const double attention = s.attention_factor.value_or(1.0);
  if (!(s.factor > 0) || !std::isfinite(s.factor) || !(s.beta_slow > 0) ||
      !(s.beta_fast >= s.beta_slow) || !(attention > 0) ||
      !std::isfinite(attention)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model config: rope_scaling: expected factor > 0, attention_factor > "
        "0 and 0 < beta_slow <= beta_fast, found ",
        s.factor, ", ", attention, ", ", s.beta_slow, ", ", s.beta_fast));
  }
  if (s.kind == RopeKind::kLinear) return absl::OkStatus();
  if (!(s.low_freq_factor > 0) || !(s.high_freq_factor > s.low_freq_factor) ||
      s.original_max_position <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: rope_scaling: expected "
                     "0 < low_freq_factor < high_freq_factor and "
                     "original_max_position_embeddings > 0, found ",
                     s.low_freq_factor, ", ", s.high_freq_factor, ", ",
                     s.original_max_position));
  }
  return absl::OkStatus();
}

absl::Status CheckTokenIds(const ModelConfig& c) {
  // An EOS outside the vocabulary could never be produced; a PAD outside it is
  // only ever masked, and some published files have one.
  for (int32_t id : c.eos_ids) {
    COX_RETURN_IF_ERROR(CheckRange("eos_token_id", id, 0, c.vocab_size - 1));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::FromJson(
    std::string_view config_json) {
  Json root = Json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) {
    return absl::InvalidArgumentError("config.json: not a JSON object");
  }
  Reader in(root);
  ModelConfig config;
  std::string type = in.String("model_type", "");
  const FamilyNames* names = nullptr;
  for (const FamilyNames& candidate : kFamilies) {
    if (candidate.model_type == type) names = &candidate;
  }
  if (names == nullptr) {
    const Json* found = in.Find("model_type");
    return Bad("model_type", "gpt2, llama, qwen2, qwen3 or instruct_encdec",
               found == nullptr ? Json() : *found);
  }
  config.family = names->family;
  config.vocab_size = in.Int("vocab_size", std::nullopt);
  switch (config.family) {
    case ModelFamily::kGpt2:
      ReadGpt2(in, config);
      break;
    case ModelFamily::kInstructEncdec:
      ReadEncdec(in, config);
      break;
    default:
      ReadLlamaFamily(in, config);
      break;
  }
  ReadHead(in, config);
  ReadTokenIds(in, config);
  COX_RETURN_IF_ERROR(in.status());
  COX_RETURN_IF_ERROR(config.Validate());
  return config;
}

std::string ModelConfig::ToJson() const {
  const FamilyNames& names = NamesOf(family);
  Json out;
  out["model_type"] = std::string(names.model_type);
  out["architectures"] = Json::array({std::string(
      head == HeadKind::kScalar ? names.scalar : names.language_model)});
  out["vocab_size"] = vocab_size;
  out["tie_word_embeddings"] = tied_embeddings;
  out["torch_dtype"] = "float32";
  WriteFamily(*this, out);
  auto id = [](const std::optional<int32_t>& value) {
    return value.has_value() ? Json(*value) : Json();
  };
  out["bos_token_id"] = id(bos_id);
  out["pad_token_id"] = id(pad_id);
  if (eos_ids.size() == 1) {
    out["eos_token_id"] = eos_ids[0];
  } else {
    out["eos_token_id"] = eos_ids.empty() ? Json() : Json(eos_ids);
  }
  if (head == HeadKind::kScalar) {
    out["num_labels"] = 1;
    out["id2label"] = {{"0", "LABEL_0"}};
    out["label2id"] = {{"LABEL_0", 0}};
    out["cox_reward_gain"] = reward_gain;
    out["cox_reward_bias"] = reward_bias;
    if (score_bias) out["cox_score_bias"] = true;
  }
  return out.dump(2) + "\n";
}

absl::Status ModelConfig::Validate() const {
  COX_RETURN_IF_ERROR(CheckRange("vocab_size", vocab_size, 1, kMaxDimension));
  COX_RETURN_IF_ERROR(CheckRange("hidden size", hidden, 1, kMaxDimension));
  COX_RETURN_IF_ERROR(CheckRange("layers", layers, 1, kMaxLayers));
  COX_RETURN_IF_ERROR(CheckRange("heads", heads, 1, kMaxDimension));
  COX_RETURN_IF_ERROR(CheckRange("head_dim", head_dim, 1, kMaxDimension));
  COX_RETURN_IF_ERROR(CheckRange("kv_heads", kv_heads, 1, heads));
  COX_RETURN_IF_ERROR(
      CheckRange("intermediate size", intermediate, 1, kMaxDimension));
  COX_RETURN_IF_ERROR(
      CheckRange("max positions", max_positions, 1, kMaxDimension));
  COX_RETURN_IF_ERROR(
      CheckRange("heads * head_dim", heads * head_dim, 1, kMaxDimension));
  if (heads % kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: kv_heads: expected a divisor of ", heads,
                     " heads, found ", kv_heads));
  }
  if (!(norm_eps >= 0) || !std::isfinite(norm_eps)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model config: norm eps: expected >= 0, found ", norm_eps));
  }
  if (!std::isfinite(reward_gain) || !std::isfinite(reward_bias)) {
    return absl::InvalidArgumentError(
        "model config: cox_reward_gain and cox_reward_bias: expected finite");
  }
  bool learned_positions =
      family == ModelFamily::kGpt2 || family == ModelFamily::kInstructEncdec;
  if (learned_positions && heads * head_dim != hidden) {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: hidden size: expected a multiple of ",
                     heads, " heads, found ", hidden));
  }
  if (!learned_positions) COX_RETURN_IF_ERROR(CheckRope(*this));
  if (family == ModelFamily::kInstructEncdec) {
    COX_RETURN_IF_ERROR(
        CheckRange("encoder layers", encoder_layers, 1, kMaxLayers));
  }
  COX_RETURN_IF_ERROR(CheckTokenIds(*this));
  return CheckRange("parameters", ParameterCount(), 1, kMaxParameters);
}

int64_t ModelConfig::ParameterCount() const {
  int64_t total = 0;
  for (const auto& [name, shape] : ParameterShapes(*this)) {
    int64_t count = 1;
    for (int64_t dimension : shape) count *= dimension;
    total += count;
  }
  return total;
}

}  // namespace cox
